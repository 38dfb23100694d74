"""etcd beneath the control plane: a client, a gapless reflection of a prefix, leases and elections.

It knows keys and values and nothing of documents. Control process only: gRPC is imported here and nowhere else.
"""
