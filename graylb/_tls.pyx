"""TLS on the engine's own descriptors, over OpenSSL's public C API.

`Certificates` is a listener's side: names to certificates, one of which is chosen when the ClientHello has arrived and before
anything else happens, so that versions, client certificates and resumption are those of the chosen name. `Origination` is a
service's side, `Origin` that of one instance. Connections are made, read and written through `TlsApi` (see _tls.pxd).

Bytes come and go through a BIO of our own: it knows from a short receive that the socket is drained (no second system call to
hear EAGAIN) and takes first what was received before TLS began.
"""

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, EPIPE, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from graylb._live cimport ALPN_H2, ALPN_HTTP1, ALPN_NONE, Tls
from graylb.openssl cimport *

import hashlib
import ipaddress

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <time.h>
    #include <openssl/core_names.h>
    #include <openssl/params.h>
    #include <openssl/x509v3.h>
    #if OPENSSL_VERSION_NUMBER < 0x30000000L
    #error "graylb needs OpenSSL 3.0 or later"
    #endif
    static int gl_names(X509 *x, GENERAL_NAMES **names) {
      *names = X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL);
      return *names ? sk_GENERAL_NAME_num(*names) : 0; }
    static int gl_name(GENERAL_NAMES *names, int i, const char **p, int *n) {
      GENERAL_NAME *g = sk_GENERAL_NAME_value(names, i);
      if (g->type != GEN_URI && g->type != GEN_DNS && g->type != GEN_IPADD) return -1;
      *p = (const char *)ASN1_STRING_get0_data(g->d.ia5); *n = ASN1_STRING_length(g->d.ia5);
      return g->type; }
    static void gl_free_names(GENERAL_NAMES *names) { GENERAL_NAMES_free(names); }
    static void gl_set_errno(int e) { errno = e; }
    static int gl_mac_key(EVP_MAC_CTX *m, unsigned char *key, size_t n) {
      OSSL_PARAM p[3];
      p[0] = OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, key, n);
      p[1] = OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)"SHA256", 0);
      p[2] = OSSL_PARAM_construct_end();
      return EVP_MAC_CTX_set_params(m, p); }
    """
    ctypedef struct GENERAL_NAMES:
        pass
    int gl_names(X509*, GENERAL_NAMES**)
    int gl_name(GENERAL_NAMES*, int, const char**, int*)
    void gl_free_names(GENERAL_NAMES*)
    int gl_mac_key(EVP_MAC_CTX*, unsigned char*, size_t)
    void gl_set_errno(int)
    long timegm(tm*)
    ssize_t send(int, const void*, size_t, int)
    ssize_t recv(int, void*, size_t, int)
    enum: MSG_NOSIGNAL

cdef enum:
    TICKET_KEY = 80        # bytes: name 16, HMAC key 32, AES key 32
    TICKET_KEYS = 3        # the first seals, all open
    TICKET_SECONDS = 7200
    TOLD_MAX = 2048        # of who a certificate names, as text
    TURN = 262144          # bytes of the socket that one read takes at most, however few of them are data

# Mozilla's intermediate recommendation: TLS 1.2 suites (those of 1.3 are all good), and groups
CIPHERS = ("ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
           "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305")
cdef const char* GROUPS = b"X25519:P-256:P-384"
VERSIONS = {"1.2": TLS1_2_VERSION, "1.3": TLS1_3_VERSION}
PROTOCOLS = {"http/1.1": ALPN_HTTP1, "h2": ALPN_H2}

cdef struct Secured:
    Tls face               # first: a Secured* is a Tls*
    SSL* ssl
    int fd
    uint8_t server
    uint8_t drained        # the last receive was short: nothing is in the kernel until the next event
    uint8_t failed         # nothing more may be done with it
    uint8_t shut           # our close_notify was sent
    int entry              # server: number of the certificate chosen
    size_t taken           # bytes received in this turn
    char* early            # received before TLS began
    size_t early_len
    size_t early_off
    char* text             # identity and what is told of it
    PyObject* owner        # Certificates or Origin, held

cdef BIO_METHOD* METHOD = NULL
cdef unsigned char TICKETS[TICKET_KEYS][TICKET_KEY]
cdef int N_TICKETS = 0


class TlsError(ValueError):
    """What cannot be used. `part`: which of "cert", "key", "client_ca", "ca", "ciphers", "min_version" is to blame."""

    def __init__(self, part, message):
        super().__init__(message)
        self.part = part


# ---- the socket -----------------------------------------------------------------------------------------------------

cdef int _bio_read(BIO* b, char* p, int n) noexcept:
    cdef Secured* t = <Secured*>BIO_get_data(b)
    cdef size_t k
    cdef ssize_t r
    BIO_clear_retry_flags(b)
    if t.early != NULL:
        k = min(<size_t>n, t.early_len - t.early_off)
        memcpy(p, t.early + t.early_off, k)
        t.early_off += k
        if t.early_off == t.early_len:
            free(t.early)
            t.early = NULL
        return <int>k
    if t.drained or t.taken >= TURN:
        BIO_set_retry_read(b)
        return -1
    r = recv(t.fd, p, n, 0)
    if r > 0:
        t.taken += r
        if r < n: t.drained = 1
    elif r < 0 and (errno == EAGAIN or errno == EINTR):
        if errno == EAGAIN: t.drained = 1
        BIO_set_retry_read(b)
    return <int>r


cdef int _bio_write(BIO* b, const char* p, int n) noexcept:
    cdef Secured* t = <Secured*>BIO_get_data(b)
    cdef ssize_t w
    BIO_clear_retry_flags(b)
    w = send(t.fd, p, n, MSG_NOSIGNAL)
    if w < 0 and (errno == EAGAIN or errno == EINTR): BIO_set_retry_write(b)
    return <int>w


cdef long _bio_ctrl(BIO* b, int command, long number, void* p) noexcept:
    return 1 if command == BIO_CTRL_FLUSH else 0


# ---- connections ----------------------------------------------------------------------------------------------------

cdef Secured* _secured(SSL_CTX* context, int fd, object owner) noexcept:
    cdef Secured* t = <Secured*>calloc(1, sizeof(Secured))
    cdef BIO* b
    if t == NULL: return NULL
    t.fd = fd
    t.ssl = SSL_new(context)
    b = BIO_new(METHOD)
    if t.ssl == NULL or b == NULL or SSL_set_ex_data(t.ssl, 0, t) != 1:
        SSL_free(t.ssl)
        BIO_free(b)
        free(t)
        ERR_clear_error()
        return NULL
    BIO_set_data(b, t)
    BIO_set_init(b, 1)
    SSL_set_bio(t.ssl, b, b)
    Py_INCREF(owner)
    t.owner = <PyObject*>owner
    return t


cdef Tls* _accept(void* contexts, int fd) noexcept:
    cdef Certificates all_ = <Certificates>contexts
    cdef Secured* t = _secured(all_.base, fd, all_)
    if t == NULL: return NULL
    t.server = 1
    t.face.mixed = all_.mixed
    SSL_set_accept_state(t.ssl)
    return &t.face


cdef Tls* _connect(void* origin, int fd, uint8_t alpn) noexcept:
    cdef Origin o = <Origin>origin
    cdef Secured* t = _secured(o.origination.context, fd, o)
    cdef bint good
    if t == NULL: return NULL
    SSL_set_connect_state(t.ssl)
    good = o._name(t.ssl)
    if alpn == ALPN_H2: good = good and SSL_set_alpn_protos(t.ssl, <const unsigned char*>b"\x02h2", 3) == 0
    elif alpn == ALPN_HTTP1: good = good and SSL_set_alpn_protos(t.ssl, <const unsigned char*>b"\x08http/1.1", 9) == 0
    if o.session != NULL and SSL_set_session(t.ssl, o.session) != 1: ERR_clear_error()
    if good: return &t.face
    _free(&t.face)
    return NULL


cdef void _free(Tls* face) noexcept:
    cdef Secured* t = <Secured*>face
    # without this a connection that was not shut in both directions would take its session with it
    if not t.failed: SSL_set_shutdown(t.ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN)
    SSL_free(t.ssl)
    free(t.early)
    free(t.text)
    Py_DECREF(<object>t.owner)
    free(t)


cdef int _early(Tls* face, const char* p, size_t n) noexcept:
    cdef Secured* t = <Secured*>face
    if n == 0: return 0
    t.early = <char*>malloc(n)
    if t.early == NULL: return -1
    memcpy(t.early, p, n)
    t.early_len = n
    return 0


cdef int _handshake(Tls* face) noexcept:
    cdef Secured* t = <Secured*>face
    cdef const unsigned char* name = NULL
    cdef unsigned int n = 0
    cdef int r, e
    if t.failed: return -1
    t.drained = 0
    t.taken = 0
    ERR_clear_error()
    gl_set_errno(0)
    r = SSL_do_handshake(t.ssl)
    if r == 1:
        SSL_get0_alpn_selected(t.ssl, &name, &n)
        if n == 2 and memcmp(name, b"h2", 2) == 0: face.alpn = ALPN_H2
        elif n: face.alpn = ALPN_HTTP1
        face.resumed = SSL_session_reused(t.ssl) == 1
        face.ready = 1
        face.more = 1                                # records behind the handshake may be here already
        if not _identify(t):
            face.reason = b"out of memory"
            return -1
        return 1
    e = SSL_get_error(t.ssl, r)
    if e == SSL_ERROR_WANT_READ or e == SSL_ERROR_WANT_WRITE:
        face.more = t.taken >= TURN
        return 0
    _explain(t, e)
    return -1


cdef void _explain(Secured* t, int e) noexcept:
    """Why a handshake failed."""
    cdef int system = errno
    cdef unsigned long first = ERR_peek_last_error()
    cdef long verdict = SSL_get_verify_result(t.ssl)
    cdef int reason = ERR_GET_REASON(first)
    t.failed = 1
    if e == SSL_ERROR_SSL and first:
        t.face.plain_http = reason == SSL_R_HTTP_REQUEST
        if reason == SSL_R_CERTIFICATE_VERIFY_FAILED and verdict != X509_V_OK: t.face.reason = X509_verify_cert_error_string(verdict)
        else: t.face.reason = ERR_reason_error_string(first)
    elif system and system != EPIPE and system != ECONNRESET:
        t.face.unreached = 1
        t.face.reason = b"the connection failed"
    if t.face.reason == NULL: t.face.reason = b"closed by the peer"
    ERR_clear_error()


cdef ssize_t _read(Tls* face, char* p, size_t most) noexcept:
    cdef Secured* t = <Secured*>face
    cdef size_t got = 0
    cdef int r, e
    if t.failed:
        gl_set_errno(ECONNRESET)
        return -1
    t.drained = 0
    t.taken = 0
    face.more = 0
    ERR_clear_error()
    while got < most:
        r = SSL_read(t.ssl, p + got, <int>min(most - got, <size_t>1 << 30))
        if r > 0:
            got += r
            continue
        e = SSL_get_error(t.ssl, r)
        if e == SSL_ERROR_WANT_READ or e == SSL_ERROR_WANT_WRITE:
            face.more = t.taken >= TURN
            if got: return got
            gl_set_errno(EAGAIN)
            return -1
        if got == 0 and e == SSL_ERROR_ZERO_RETURN: return 0
        face.more = 1
        if e != SSL_ERROR_ZERO_RETURN:
            t.failed = 1
            ERR_clear_error()
        if got: return got
        gl_set_errno(ECONNRESET)
        return -1
    return got


cdef ssize_t _write(Tls* face, const char* p, size_t n) noexcept:
    cdef Secured* t = <Secured*>face
    cdef size_t done = 0
    cdef int r, e
    if t.failed or t.shut:
        gl_set_errno(EPIPE)
        return -1
    ERR_clear_error()
    while done < n:
        r = SSL_write(t.ssl, p + done, <int>min(n - done, <size_t>1 << 30))
        if r > 0:
            done += r
            continue
        e = SSL_get_error(t.ssl, r)
        if e == SSL_ERROR_WANT_WRITE or e == SSL_ERROR_WANT_READ:
            if done: break
            gl_set_errno(EAGAIN)
            return -1
        t.failed = 1
        ERR_clear_error()
        if done: break
        gl_set_errno(EPIPE)
        return -1
    return done


cdef bint _quiet(Tls* face) noexcept:
    cdef Secured* t = <Secured*>face
    cdef char probe
    cdef int r, e
    if t.failed: return False
    t.drained = 0
    t.taken = 0
    ERR_clear_error()
    r = SSL_peek(t.ssl, &probe, 1)
    if r > 0: return False
    e = SSL_get_error(t.ssl, r)
    if e == SSL_ERROR_WANT_READ or e == SSL_ERROR_WANT_WRITE: return t.taken < TURN
    if e != SSL_ERROR_ZERO_RETURN: t.failed = 1
    ERR_clear_error()
    return False


cdef void _shut(Tls* face) noexcept:
    cdef Secured* t = <Secured*>face
    if t.failed or t.shut or not face.ready: return
    t.shut = 1
    ERR_clear_error()
    if SSL_shutdown(t.ssl) < 0: ERR_clear_error()


cdef bint _admits(Tls* face, const char* host, size_t n) noexcept:
    cdef Secured* t = <Secured*>face
    cdef Certificates all_ = <Certificates>t.owner
    cdef size_t k = n
    if n == 0: return True
    if host[0] != c'[':                              # an IPv6 address has no certificate of its own by name
        while k and host[k - 1] != c':': k -= 1
        k = k - 1 if k else n
    return all_.policies[all_._find(host, k)] == all_.policies[t.entry]


# ---- who the peer is ------------------------------------------------------------------------------------------------

cdef bint _plain(const char* p, int n) noexcept:
    """Whether a name can stand in a header field as it is, and between others."""
    cdef int i
    for i in range(n):
        if p[i] <= 32 or p[i] >= 127 or p[i] == c'"' or p[i] == c',' or p[i] == c';' or p[i] == c'\\': return False
    return 0 < n <= 512


cdef bint _identify(Secured* t) noexcept:
    """Reads the client's certificate, once for a connection. False: out of memory."""
    cdef X509* cert
    cdef GENERAL_NAMES* names
    cdef BIO* subject
    cdef const char* p = NULL
    cdef char* text
    cdef char* o
    cdef char* end
    cdef unsigned char digest[32]
    cdef unsigned int digest_len = 32
    cdef int i, kind, wanted, n = 0, count
    if not t.server: return True
    cert = SSL_get1_peer_certificate(t.ssl)
    if cert == NULL: return True
    text = t.text = <char*>malloc(2 * TOLD_MAX)
    subject = BIO_new(BIO_s_mem())
    count = gl_names(cert, &names)
    if text != NULL and subject != NULL:
        # `text`: what is told of it, then its identity
        o = text
        end = text + TOLD_MAX
        X509_digest(cert, EVP_sha256(), digest, &digest_len)
        memcpy(o, b"Hash=", 5)
        o += 5
        for i in range(32):
            o[0] = b"0123456789abcdef"[digest[i] >> 4]
            o[1] = b"0123456789abcdef"[digest[i] & 15]
            o += 2
        X509_NAME_print_ex(subject, X509_get_subject_name(cert), 0, XN_FLAG_RFC2253)
        n = <int>BIO_get_mem_data(subject, <char**>&p)
        if 0 < n <= 512:                             # many have none but an empty one
            memcpy(o, b";Subject=\"", 10)
            memcpy(o + 10, p, n)
            o[10 + n] = c'"'
            o += 11 + n
            t.face.identity = text + TOLD_MAX
            t.face.identity_len = n
            memcpy(text + TOLD_MAX, p, n)
        for wanted in (GEN_DNS, GEN_URI):            # what comes last is the identity: the first of its kind
            for i in range(count - 1, -1, -1):
                kind = gl_name(names, i, &p, &n)
                if kind == wanted and _plain(p, n):
                    t.face.identity = text + TOLD_MAX
                    t.face.identity_len = n
                    memcpy(text + TOLD_MAX, p, n)
        for wanted in (GEN_URI, GEN_DNS):
            for i in range(count):
                kind = gl_name(names, i, &p, &n)
                if kind != wanted or not _plain(p, n) or o + n + 5 > end: continue
                memcpy(o, b";URI=" if wanted == GEN_URI else b";DNS=", 5)
                memcpy(o + 5, p, n)
                o += 5 + n
        t.face.told = text
        t.face.told_len = o - text
    if names != NULL: gl_free_names(names)
    BIO_free(subject)
    X509_free(cert)
    ERR_clear_error()
    return t.face.told != NULL


# ---- callbacks ------------------------------------------------------------------------------------------------------

cdef int _on_hello(SSL* ssl, int* alert, void* arg) noexcept:
    """The ClientHello is here: everything from now on is as the name that it asks for has it."""
    cdef Certificates all_ = <Certificates>arg
    cdef Secured* t = <Secured*>SSL_get_ex_data(ssl, 0)
    cdef const unsigned char* p
    cdef size_t n
    cdef int k = 0
    # server_name_list: u16 length, then u8 type (0: host name), u16 length, name (RFC 6066 section 3)
    if SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_server_name, &p, &n) == 1 and n > 5 and p[2] == 0:
        if <size_t>(p[3] << 8 | p[4]) + 5 <= n: k = all_._find(<const char*>p + 5, p[3] << 8 | p[4])
    t.entry = k
    if all_._apply(ssl, k): return SSL_CLIENT_HELLO_SUCCESS
    alert[0] = SSL_AD_INTERNAL_ERROR
    return SSL_CLIENT_HELLO_ERROR


cdef int _on_alpn(SSL* ssl, const unsigned char** out, unsigned char* out_len, const unsigned char* offered,
                  unsigned int offered_len, void* arg) noexcept:
    """By our preference. Without a protocol in common the handshake fails (RFC 7301 section 3.2)."""
    cdef Certificates all_ = <Certificates>arg
    cdef int r = SSL_select_next_proto(<unsigned char**>out, out_len, <const unsigned char*>PyBytes_AS_STRING(all_.alpn),
                                       <unsigned int>PyBytes_GET_SIZE(all_.alpn), offered, offered_len)
    return SSL_TLSEXT_ERR_OK if r == OPENSSL_NPN_NEGOTIATED else SSL_TLSEXT_ERR_ALERT_FATAL


cdef int _on_ticket(SSL* ssl, unsigned char* name, unsigned char* iv, EVP_CIPHER_CTX* c, EVP_MAC_CTX* m, int sealing) noexcept:
    """Seals with the first key, opens with any. A ticket of an older key is replaced, and any of TLS 1.3: clients use each but once
    (RFC 8446 section C.4), and OpenSSL sends a new one only where it is told to."""
    cdef int i
    if sealing:
        if N_TICKETS == 0 or RAND_bytes(iv, 16) != 1: return -1
        memcpy(name, TICKETS[0], 16)
        if EVP_EncryptInit_ex(c, EVP_aes_256_cbc(), NULL, TICKETS[0] + 48, iv) != 1: return -1
        return 1 if gl_mac_key(m, TICKETS[0] + 16, 32) == 1 else -1
    for i in range(N_TICKETS):
        if memcmp(name, TICKETS[i], 16) != 0: continue
        if EVP_DecryptInit_ex(c, EVP_aes_256_cbc(), NULL, TICKETS[i] + 48, iv) != 1: return -1
        if gl_mac_key(m, TICKETS[i] + 16, 32) != 1: return -1
        return 1 if i == 0 and SSL_version(ssl) != TLS1_3_VERSION else 2
    return 0


cdef int _on_session(SSL* ssl, SSL_SESSION* s) noexcept:
    """A session that an instance can resume; the newest is kept."""
    cdef Secured* t = <Secured*>SSL_get_ex_data(ssl, 0)
    cdef Origin o = <Origin>t.owner
    if not SSL_SESSION_is_resumable(s): return 0
    SSL_SESSION_free(o.session)
    o.session = s
    return 1


cdef int _no_password(char* o, int room, int writing, void* arg) noexcept:
    return 0


# ---- loading --------------------------------------------------------------------------------------------------------

cdef str _reason():
    """The newest error of OpenSSL in words; the queue is empty afterwards."""
    cdef const char* text = ERR_reason_error_string(ERR_peek_last_error())
    ERR_clear_error()
    return text.decode() if text != NULL else "out of memory"


cdef class Chain:
    """The certificates in a PEM text, first come first. Raises TlsError when there is none, or one cannot be read."""

    cdef X509* certs[64]
    cdef int n

    def __cinit__(self, bytes pem, str part):
        cdef BIO* b = BIO_new_mem_buf(PyBytes_AS_STRING(pem), <int>PyBytes_GET_SIZE(pem))
        cdef X509* x
        cdef int limit = 64
        try:
            while self.n < limit:
                x = PEM_read_bio_X509(b, NULL, _no_password, NULL)
                if x == NULL: break
                self.certs[self.n] = x
                self.n += 1
            # the last try finds no further beginning; anything else is a block that is broken
            why = _reason()
            if why != "no start line" or self.n == 0:
                what = "holds no PEM certificate" if self.n == 0 and why == "no start line" else f"certificate {self.n + 1} cannot be read: {why}"
                raise TlsError(part, what)
        finally: BIO_free(b)

    def __dealloc__(self):
        cdef int i
        for i in range(self.n): X509_free(self.certs[i])


cdef EVP_PKEY* _key_of(bytes pem) except NULL:
    cdef BIO* b = BIO_new_mem_buf(PyBytes_AS_STRING(pem), <int>PyBytes_GET_SIZE(pem))
    cdef EVP_PKEY* key = PEM_read_bio_PrivateKey(b, NULL, _no_password, NULL)
    BIO_free(b)
    if key != NULL:
        ERR_clear_error()
        return key
    why = _reason()
    if b"ENCRYPTED" in pem: raise TlsError("key", "the private key is encrypted; expected one without a password")
    if why in ("no start line", "unsupported") and b"PRIVATE KEY-----" not in pem: raise TlsError("key", "holds no PEM private key")
    raise TlsError("key", f"the private key cannot be read: {why}")


cdef _use(SSL_CTX* context, bytes cert, bytes key):
    """A certificate, what stands behind it in its file, and its key."""
    cdef Chain chain = Chain(cert, "cert")
    cdef EVP_PKEY* own
    cdef int i
    if SSL_CTX_use_certificate(context, chain.certs[0]) != 1: raise TlsError("cert", f"the certificate cannot be used: {_reason()}")
    own = _key_of(key)
    i = SSL_CTX_use_PrivateKey(context, own)
    EVP_PKEY_free(own)
    if i != 1 or SSL_CTX_check_private_key(context) != 1:
        why = _reason()
        if "mismatch" in why: raise TlsError("key", "the private key is not the certificate's")
        raise TlsError("key", f"the private key cannot be used: {why}")
    for i in range(1, chain.n):
        if SSL_CTX_add0_chain_cert(context, chain.certs[i]) != 1: raise TlsError("cert", f"its chain cannot be used: {_reason()}")
        chain.certs[i] = NULL                        # the context's from now on


cdef _trust(SSL_CTX* context, bytes pem, str part, bint announce):
    """Whose signatures are good. announce: a server tells them its clients."""
    cdef Chain chain = Chain(pem, part)
    cdef X509_STORE* store = X509_STORE_new()
    cdef int i, good = store != NULL
    for i in range(chain.n):
        good = good and X509_STORE_add_cert(store, chain.certs[i]) == 1
        if announce: good = good and SSL_CTX_add_client_CA(context, chain.certs[i]) == 1
    if good: SSL_CTX_set1_cert_store(context, store)
    X509_STORE_free(store)
    if not good: raise TlsError(part, f"cannot be used: {_reason()}")


cdef SSL_CTX* _context(const SSL_METHOD* method, str min_version, str ciphers) except NULL:
    """What both sides have in common."""
    cdef SSL_CTX* c = SSL_CTX_new(method)
    cdef uint64_t options = SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION
    if c == NULL: raise MemoryError
    try:
        SSL_CTX_set_options(c, options)
        SSL_CTX_set_mode(c, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER)
        SSL_CTX_set_read_ahead(c, 1)
        if min_version not in VERSIONS: raise TlsError("min_version", f"TLS {min_version!r} is not known; expected 1.2 or 1.3")
        SSL_CTX_set_min_proto_version(c, VERSIONS[min_version])
        raw = (ciphers or CIPHERS).encode()
        if SSL_CTX_set_cipher_list(c, PyBytes_AS_STRING(raw)) != 1:
            raise TlsError("ciphers", f"{ciphers!r} names no cipher that OpenSSL knows ({_reason()})")
        if SSL_CTX_set1_groups_list(c, GROUPS) != 1: ERR_clear_error()
    except BaseException:
        SSL_CTX_free(c)
        raise
    return c


cdef class Certificates:
    """A listener's certificates.

    entries: dicts of `cert` and `key` (PEM bytes), `names` (host names, `*.suffix` for one more label; of the first one, which
    serves everybody else, they may be left out), and optionally `client_ca` (PEM bytes), `client_auth` ("require", the default
    with a client_ca, or "optional"), `min_version`, `ciphers`. protocols: for ALPN, best first. Raises TlsError, whose
    `entry` is the number of the one to blame.
    """

    cdef SSL_CTX* base             # connections begin with it: the first one's
    cdef SSL_CTX* contexts[1024]
    cdef int modes[1024]           # of verification
    cdef int lowest[1024]          # version
    cdef int policies[1024]        # equal numbers: the same client certificates are asked for
    cdef unsigned char ids[1024][32]
    cdef int n
    cdef uint8_t mixed
    cdef dict by_name
    cdef bytes alpn
    cdef readonly tuple names      # for each entry

    def __init__(self, entries, protocols=("h2", "http/1.1")):
        if not entries: raise TlsError("cert", "no certificate is given")
        if len(entries) > 1024: raise TlsError("cert", "at most 1024 certificates are possible")
        self.alpn = b"".join(bytes([len(each)]) + each.encode() for each in protocols)
        self.by_name = {}
        if N_TICKETS == 0: set_ticket_keys([random_ticket_key()])
        known, names = {}, []
        for number, entry in enumerate(entries):
            try: names.append(self._add(entry, known))
            except TlsError as error:
                error.entry = number
                raise
        self.names = tuple(names)
        self.mixed = len(known) > 1
        self.base = self.contexts[0]
        SSL_CTX_set_client_hello_cb(self.base, _on_hello, <void*>self)

    cdef _add(self, dict entry, dict known):
        cdef int k = self.n
        cdef SSL_CTX* c
        cdef bytes client_ca = entry.get("client_ca") or b""
        cdef str auth = (entry.get("client_auth") or "require") if client_ca else "off"
        cdef str lowest = entry.get("min_version") or "1.2"
        c = self.contexts[k] = _context(TLS_server_method(), lowest, entry.get("ciphers"))
        self.n += 1
        _use(c, entry["cert"], entry["key"])
        if client_ca: _trust(c, client_ca, "client_ca", True)
        self.modes[k] = {"off": SSL_VERIFY_NONE, "optional": SSL_VERIFY_PEER,
                         "require": SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT}[auth]
        self.lowest[k] = VERSIONS[lowest]
        policy = hashlib.sha256(auth.encode() + b"\0" + client_ca).digest()
        self.policies[k] = known.setdefault(policy, len(known))
        names = tuple(name.lower() for name in entry.get("names") or ())
        # A session is resumed only where the same would be asked of the client again, in whichever worker.
        own = hashlib.sha256(b"graylb\0" + ",".join(sorted(names)).encode() + b"\0" + policy).digest()
        memcpy(self.ids[k], PyBytes_AS_STRING(own), 32)
        SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF)
        SSL_CTX_set_timeout(c, TICKET_SECONDS)
        SSL_CTX_set_num_tickets(c, 1)
        SSL_CTX_set_tlsext_ticket_key_evp_cb(c, _on_ticket)
        SSL_CTX_set_alpn_select_cb(c, _on_alpn, <void*>self)
        for name in names: self.by_name.setdefault(name.encode(), k)
        return names

    def __dealloc__(self):
        cdef int i
        for i in range(self.n): SSL_CTX_free(self.contexts[i])

    cdef int _find(self, const char* name, size_t n) noexcept:
        """The entry for a host name of any case: the very name, its wildcard, the first one."""
        cdef bytes low
        if self.n == 1 or n == 0 or n > 255: return 0
        low = PyBytes_FromStringAndSize(name, n).lower()
        low = low.removesuffix(b".")
        found = self.by_name.get(low)
        if found is None:
            _, dot, rest = low.partition(b".")
            found = self.by_name.get(b"*." + rest, 0) if dot else 0
        return found

    cdef bint _apply(self, SSL* ssl, int k) noexcept:
        """Switching the context alone would leave versions and verification those of the first."""
        if k and SSL_set_SSL_CTX(ssl, self.contexts[k]) == NULL: return False
        SSL_set_verify(ssl, self.modes[k], NULL)
        return SSL_set_min_proto_version(ssl, self.lowest[k]) == 1 and SSL_set_session_id_context(ssl, self.ids[k], 32) == 1

    def find(self, str name):
        """The number of the entry that serves a host name."""
        raw = name.encode()
        return self._find(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))


cdef class Origination:
    """How a service's instances are called over TLS.

    ca: PEM bytes of who is trusted; None: the system's store. verify=False trusts anybody. cert, key: ours, PEM bytes, if
    they ask for one. server_name: what to ask for and to verify; None: the host of each instance's address. Raises TlsError.
    """

    cdef SSL_CTX* context
    cdef readonly str server_name
    cdef readonly bint verify

    def __init__(self, *, bytes ca=None, bytes cert=None, bytes key=None, str server_name=None, bint verify=True,
                 str min_version="1.2", str ciphers=None):
        self.server_name = server_name
        self.verify = verify
        self.context = _context(TLS_client_method(), min_version, ciphers)
        if cert is not None: _use(self.context, cert, key)
        if ca is not None: _trust(self.context, ca, "ca", False)
        elif verify: SSL_CTX_set1_cert_store(self.context, (<Store>_system()).store)
        SSL_CTX_set_verify(self.context, SSL_VERIFY_PEER if verify else SSL_VERIFY_NONE, NULL)
        SSL_CTX_set_session_cache_mode(self.context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL_STORE)
        SSL_CTX_sess_set_new_cb(self.context, _on_session)

    def __dealloc__(self):
        SSL_CTX_free(self.context)


cdef class Store:
    """The system's certificates, read once."""

    cdef X509_STORE* store

    def __cinit__(self):
        self.store = X509_STORE_new()
        if self.store == NULL: raise MemoryError
        if X509_STORE_set_default_paths(self.store) != 1: ERR_clear_error()

    def __dealloc__(self):
        X509_STORE_free(self.store)


_store = None

cdef _system():
    global _store
    if _store is None: _store = Store()
    return _store


cdef class Origin:
    """One instance that is called over TLS. host: of its address; it need not be a name when there is a server_name.

    Sessions are resumed with this instance only.
    """

    cdef readonly Origination origination
    cdef SSL_SESSION* session
    cdef bytes name
    cdef bint is_ip

    def __init__(self, Origination origination, str host):
        self.origination = origination
        name = origination.server_name or host
        try:
            ipaddress.ip_address(name)
            self.is_ip = True
        except ValueError: pass
        self.name = name.encode()

    def __dealloc__(self):
        SSL_SESSION_free(self.session)

    cdef bint _name(self, SSL* ssl) noexcept:
        """What to ask for, and what to find in the certificate. An address is never asked for (RFC 6066 section 3)."""
        cdef const char* name = PyBytes_AS_STRING(self.name)
        if not self.is_ip and name[0] and SSL_set_tlsext_host_name(ssl, name) != 1: return False
        if not self.origination.verify: return True
        if self.is_ip: return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name) == 1
        SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS)
        return SSL_set1_host(ssl, name) == 1         # an empty name fits no certificate: see `_secured` in the model


# ---- tickets --------------------------------------------------------------------------------------------------------

def random_ticket_key():
    """A new key for `set_ticket_keys`: 80 bytes."""
    cdef unsigned char key[TICKET_KEY]
    if RAND_bytes(key, TICKET_KEY) != 1: raise MemoryError
    return PyBytes_FromStringAndSize(<char*>key, TICKET_KEY)


def set_ticket_keys(keys):
    """The keys of session tickets in this process, newest first: the first seals, all open; at most three. 80 bytes each."""
    global N_TICKETS
    cdef bytes each
    keys = list(keys)[:TICKET_KEYS]
    if not keys or any(len(each) != TICKET_KEY for each in keys): raise ValueError(f"expected keys of {TICKET_KEY} bytes")
    for i, each in enumerate(keys): memcpy(TICKETS[i], PyBytes_AS_STRING(each), TICKET_KEY)
    N_TICKETS = len(keys)


# ---- what a certificate says ----------------------------------------------------------------------------------------

cdef str _name_text(const X509_NAME* name):
    cdef BIO* b = BIO_new(BIO_s_mem())
    cdef char* p = NULL
    cdef long n
    if b == NULL: raise MemoryError
    X509_NAME_print_ex(b, name, 0, XN_FLAG_RFC2253)
    n = BIO_get_mem_data(b, &p)
    text = p[:n].decode("latin-1") if n > 0 else ""
    BIO_free(b)
    return text


cdef _time_unix(const ASN1_TIME* at):
    cdef tm t
    return timegm(&t) if ASN1_TIME_to_tm(at, &t) == 1 else 0


cdef str _time_text(const ASN1_TIME* at):
    cdef tm t
    if ASN1_TIME_to_tm(at, &t) != 1: return ""
    return f"{t.tm_year + 1900:04}-{t.tm_mon + 1:02}-{t.tm_mday:02}T{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}Z"


def describe(bytes pem, str part="cert"):
    """What the certificates in a PEM text say, as a list of dicts: subject and issuer (RFC 2253), names (DNS), addresses, uris,
    not_before and not_after (ISO 8601, UTC; and with _unix behind their names in seconds), sha256 (hex), ca, and signs_previous: whether its name and key identifier are
    those of the issuer of the one before it (None for the first). Raises TlsError."""
    cdef Chain chain = Chain(pem, part)
    cdef GENERAL_NAMES* names
    cdef const char* p
    cdef unsigned char digest[32]
    cdef unsigned int size
    cdef int i, k, n = 0, count, kind
    cdef list found = []
    for i in range(chain.n):
        by_kind = {GEN_DNS: [], GEN_URI: [], GEN_IPADD: []}
        count = gl_names(chain.certs[i], &names)
        for k in range(count):
            kind = gl_name(names, k, &p, &n)
            if kind == GEN_IPADD and n in (4, 16): by_kind[kind].append(str(ipaddress.ip_address(p[:n])))
            elif kind in (GEN_DNS, GEN_URI): by_kind[kind].append(p[:n].decode("latin-1"))
        if names != NULL: gl_free_names(names)
        size = 32
        X509_digest(chain.certs[i], EVP_sha256(), digest, &size)
        found.append({
            "subject": _name_text(X509_get_subject_name(chain.certs[i])),
            "issuer": _name_text(X509_get_issuer_name(chain.certs[i])),
            "names": by_kind[GEN_DNS], "addresses": by_kind[GEN_IPADD], "uris": by_kind[GEN_URI],
            "not_before": _time_text(X509_get0_notBefore(chain.certs[i])),
            "not_after": _time_text(X509_get0_notAfter(chain.certs[i])),
            "not_before_unix": _time_unix(X509_get0_notBefore(chain.certs[i])),
            "not_after_unix": _time_unix(X509_get0_notAfter(chain.certs[i])),
            "sha256": (<bytes>digest[:32]).hex(), "ca": X509_check_ca(chain.certs[i]) > 0,
            "signs_previous": X509_check_issued(chain.certs[i], chain.certs[i - 1]) == X509_V_OK if i else None,
        })
    ERR_clear_error()
    return found


def names_host(bytes pem, str host):
    """Whether the first certificate in a PEM text is one for this host name. A pattern, *.suffix, is one of its names as it is."""
    cdef Chain chain
    if host.startswith("*."): return host.lower() in [name.lower() for name in describe(pem)[0]["names"]]
    chain = Chain(pem, "cert")
    raw = host.encode()
    good = X509_check_host(chain.certs[0], PyBytes_AS_STRING(raw), len(raw), X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, NULL) == 1
    ERR_clear_error()
    return good


# ---- the table of functions -----------------------------------------------------------------------------------------

cdef TlsApi API

METHOD = BIO_meth_new(BIO_TYPE_SOURCE_SINK | 127, b"graylb")
if METHOD == NULL: raise MemoryError
BIO_meth_set_read(METHOD, _bio_read)
BIO_meth_set_write(METHOD, _bio_write)
BIO_meth_set_ctrl(METHOD, _bio_ctrl)

API.version = TLS_API
API.accept = _accept
API.connect = _connect
API.free = _free
API.early = _early
API.handshake = _handshake
API.read = _read
API.write = _write
API.quiet = _quiet
API.shut = _shut
API.admits = _admits
api = PyCapsule_New(&API, b"graylb._tls.api", NULL)
