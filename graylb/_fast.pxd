"""The decision: see _fast.pyx. The structures of the table image stand here; graylb.table writes them."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from graylb._http1 cimport Head

cdef enum:
    MAX_FIELDS = 256
    NONE32 = 0xffffffff
    ALL_SLOTS = 10000

cdef enum FieldKind:       # the first DERIVED_KINDS are computed, the others looked up by name
    K_PATH = 0
    K_METHOD
    K_GRPC_SERVICE
    K_GRPC_METHOD
    K_CLIENT_IP
    K_API_VERSION
    K_DEVICE
    K_MARK
    DERIVED_KINDS
    K_HEADER = DERIVED_KINDS
    K_METADATA
    K_COOKIE
    K_QUERY

cdef enum Op:
    OP_EXACT = 0
    OP_PREFIX
    OP_SUFFIX
    OP_REGEX
    OP_PRESENT
    OP_IN
    OP_PATH_PREFIX
    OP_CIDR
    OP_NUMBER
    OP_SEMVER

cdef enum Outcome:
    DECIDED = 0
    NO_ROUTE
    NO_INSTANCE
    REDIRECT
    TOO_LARGE

# ---- the image: little endian, offsets from its first byte, every record 8-aligned -------------------------------------

cdef struct Str:
    uint32_t off
    uint32_t n

cdef struct ImageHeader:
    uint8_t magic[8]
    uint64_t checksum      # XXH64 of everything behind it
    uint64_t revision
    uint32_t size
    uint32_t fields        # FieldSet of the routes
    Str digest
    Str meta
    uint32_t n_services
    uint32_t services
    uint32_t n_routes
    uint32_t routes
    uint32_t hosts         # Entry[hosts_mask + 1]: host -> Node
    uint32_t hosts_mask
    uint32_t wild          # likewise by the part behind `*.`
    uint32_t wild_mask
    uint32_t default_node
    uint32_t n_patterns
    uint32_t patterns
    uint32_t n_instances
    uint32_t instances
    uint32_t n_splits

cdef struct FieldSet:
    uint32_t n
    uint32_t fields        # Field[n], derived ones first
    uint32_t n_derived
    uint32_t names_mask
    uint32_t names         # NameEntry[names_mask + 1]
    uint32_t uses          # bit 0 headers or metadata, bit 1 cookies, bit 2 query
    uint64_t sieve         # one bit for each (length, first letter) class of the header names

cdef struct Field:
    uint32_t kind
    uint32_t indexed
    Str name

cdef struct NameEntry:
    uint32_t hash
    uint32_t field         # + 1; 0: empty

cdef struct Entry:
    uint64_t hash
    uint32_t value         # a list of uint32_t (of rules: the rule itself when n is 1), or a Node
    uint32_t n             # 0: empty

cdef struct Cond:
    uint16_t field
    uint8_t op
    uint8_t negate
    uint32_t a
    uint32_t b
    uint32_t c

cdef struct SetEntry:
    uint32_t hash
    uint32_t off
    uint32_t n
    uint32_t used

cdef struct Network:
    uint8_t address[16]
    uint32_t bits
    uint32_t v4

cdef struct NumberBound:
    double value
    uint32_t op
    uint32_t pad

cdef struct VersionBound:
    uint64_t major
    uint64_t minor
    uint64_t patch
    uint32_t op
    uint32_t rank
    Str pre
    uint32_t alternative
    uint32_t pad

cdef struct Group:
    uint32_t conds
    uint32_t n

cdef struct Rule:
    uint32_t conds
    uint32_t n_conds
    uint32_t groups
    uint32_t n_groups
    uint32_t target
    uint32_t fallback
    Str name

cdef struct Target:
    uint32_t is_split
    uint32_t version       # NONE32: several
    uint32_t n
    uint32_t items         # uint32_t[n] instance numbers (0: n neighbours from `first`), or SplitItem[n]
    uint32_t cells         # Cell[n] (subsets; 0: all weights are equal)
    uint32_t owners        # uint16_t[ALL_SLOTS] into items (splits)
    uint32_t split_id
    uint32_t n_columns     # Column[n_columns] at `cells` (splits)
    uint64_t seed
    Str label
    uint32_t first
    uint32_t pad

cdef struct SplitItem:
    uint32_t version
    uint32_t target

cdef struct Cell:          # one column of an alias table (Walker 1977, Vose 1991)
    uint32_t threshold
    uint32_t alias

cdef struct Column:        # likewise over versions: graylb.release.columns
    uint32_t threshold
    uint16_t first
    uint16_t second

cdef struct Instance:
    Str address
    uint32_t version
    uint32_t weight
    uint32_t service
    uint32_t pad

cdef struct Service:
    Str name
    uint32_t fields
    uint32_t n_rules
    uint32_t rules
    uint32_t index
    uint32_t index_mask
    uint32_t rest
    uint32_t n_rest
    uint32_t n_targets
    uint32_t targets
    uint32_t default_target
    uint32_t stable_target
    uint32_t any_target
    uint32_t fallback      # 0 strict, 1 stable, 2 any
    uint32_t policy        # 0 weighted, 1 least_request
    uint32_t n_sticky
    uint32_t sticky        # uint32_t[n] field numbers
    uint32_t n_versions
    uint32_t versions      # Str[n]
    uint32_t panic         # percent of a version's instances that must be well for their health to count
    uint32_t first_instance
    uint32_t n_instances
    uint32_t digest        # of the whole service, 32 bytes
    Str settings           # JSON: what concerns connections and tunnels, for the engine
    double connect_timeout
    double response_timeout
    double idle_timeout

cdef struct Route:
    uint32_t path_kind     # 0 exact, 1 prefix, 2 regex
    uint32_t pattern
    Str path
    uint32_t conds
    uint32_t n_conds
    uint32_t service       # NONE32: redirect
    uint32_t status
    Str name
    uint32_t has_rewrite
    uint32_t parts         # of a redirect: 1 scheme, 2 host, 4 path
    Str rewrite
    Str scheme
    Str host
    Str to_path
    uint32_t listeners     # bits of those that it is for; 0: every one
    uint32_t pad

cdef struct Node:
    uint32_t exact
    uint32_t exact_mask
    uint32_t prefix
    uint32_t prefix_mask
    uint32_t n_prefix
    uint32_t max_prefix
    uint32_t regex         # uint32_t[n_regex] routes
    uint32_t n_regex

# ---- a decision --------------------------------------------------------------------------------------------------------

cdef struct Value:
    const char* p
    uint32_t n
    uint32_t count         # 0: absent

cdef struct Context:       # scratch of one worker
    Value values[MAX_FIELDS]
    char* arena
    size_t used
    size_t size

cdef struct Query:         # what is asked: a head and who sent it
    Head* head
    const char* ip         # canonical text
    uint32_t ip_len
    uint8_t address[16]    # IPv4 as ::ffff:a.b.c.d
    bint v4
    uint32_t listener      # the bit of where it came in (meta's listener_bits); 0: of no route's listeners

cdef enum Mark:            # what speaks against an instance; any of OUT: it gets nothing
    ILL = 1                # health checks say so
    EJECTED = 2            # its answers say so: _outliers.pyx
    OUT = 3
    WARMING = 4            # slow start: it gets a part of its weight

cdef enum:
    FULL = 65536

cdef struct Live:          # counters that outlive tables; filled by who owns them
    uint64_t** draws       # by split_id
    uint32_t** in_flight   # by instance, or NULL
    uint8_t** down         # by instance: bits of Mark; or NULL
    uint32_t** warmth      # by instance: which part of its weight it gets, of FULL, where it is WARMING
    uint32_t n_down        # how many have a bit; 0: nobody looks
    uint64_t pick

cdef struct Decision:
    int32_t route
    int32_t service
    int32_t rule
    int32_t slot
    int32_t instance
    uint32_t wanted        # version of the service; NONE32 when the target names none
    uint32_t version       # of the subset; NONE32 when it holds several: then the instance tells
    uint32_t subset        # target that the instance is from
    uint64_t draw
    uint8_t drew
    uint8_t fell_back
    uint8_t outcome
    uint8_t panic          # what is out was not left out: 1 too much of the subset is, 2 all of the service

cdef class Table:
    cdef readonly bytes image
    cdef readonly uint64_t revision
    cdef readonly str digest
    cdef readonly dict meta
    cdef list patterns
    cdef const char* base
    cdef const ImageHeader* header
    cdef const Service* services
    cdef const Route* routes
    cdef const Instance* instances
    cdef Context* own
    cdef Live mine
    cdef uint64_t shared_draw
    cdef bytes marks       # live state of its own, for `mine`: see `mark`
    cdef bytes parts
    cdef str _str(self, Str s)
    cdef str _version(self, const Service* s, uint32_t i)
    cdef str _rule_name(self, int service, int rule)
    cdef dict _told(self, Decision* d)
    cdef list _outcomes(self, uint32_t conds, uint32_t n, Query* q)

cdef int add_certificate(Head* h, const char* p, uint32_t n) noexcept
cdef bint make_context(Context* c, size_t head_bytes) noexcept
cdef void free_context(Context* c) noexcept
cdef void decide(Table t, Query* q, Context* c, Live* live, Decision* d) noexcept
cdef int32_t pick_from(Table t, Live* live, int32_t service, uint32_t target) noexcept
cdef bint pick_other(Table t, Live* live, Decision* d, const int32_t* avoid, int n_avoid) noexcept
cdef bint pick_stable(Table t, Live* live, Decision* d, const int32_t* avoid, int n_avoid) noexcept
cdef size_t write_decision(Table t, Decision* d, char* o, size_t room) noexcept
cdef uint64_t hash64(const char* p, size_t n, uint64_t seed) noexcept
