"""etcd beneath the control plane: a client, a gapless reflection of a prefix, leases and elections.

It knows keys and values and nothing of documents. Control process only: gRPC is imported here and nowhere else.
"""

import os

# gRPC reads these when it is loaded. What it has to say reaches us as errors; and of the workers that are forked off,
# none speaks gRPC, so it need not stop for them.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
