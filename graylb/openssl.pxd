"""What of OpenSSL's public C API is used here (3.0 and later; Debian: libssl-dev)."""

from libc.stdint cimport uint16_t, uint64_t

cdef extern from "<openssl/ssl.h>":
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_METHOD:
        pass
    ctypedef struct SSL_SESSION:
        pass

    SSL_CTX* SSL_CTX_new(const SSL_METHOD*)
    void SSL_CTX_free(SSL_CTX*)
    const SSL_METHOD* TLS_server_method()
    const SSL_METHOD* TLS_client_method()
    uint64_t SSL_CTX_set_options(SSL_CTX*, uint64_t)
    long SSL_CTX_set_mode(SSL_CTX*, long)
    int SSL_CTX_set_min_proto_version(SSL_CTX*, int)
    int SSL_CTX_set_max_proto_version(SSL_CTX*, int)
    int SSL_CTX_set_cipher_list(SSL_CTX*, const char*)
    int SSL_CTX_set1_groups_list(SSL_CTX*, const char*)
    long SSL_CTX_set_session_cache_mode(SSL_CTX*, long)
    long SSL_CTX_set_timeout(SSL_CTX*, long)
    void SSL_CTX_set_read_ahead(SSL_CTX*, int)
    int SSL_CTX_set_num_tickets(SSL_CTX*, size_t)
    int SSL_CTX_use_certificate(SSL_CTX*, X509*)
    int SSL_CTX_use_PrivateKey(SSL_CTX*, EVP_PKEY*)
    int SSL_CTX_check_private_key(const SSL_CTX*)
    long SSL_CTX_add0_chain_cert(SSL_CTX*, X509*)
    void SSL_CTX_set1_cert_store(SSL_CTX*, X509_STORE*)
    int SSL_CTX_add_client_CA(SSL_CTX*, X509*)
    void SSL_CTX_set_verify(SSL_CTX*, int, void*)
    void SSL_CTX_set_client_hello_cb(SSL_CTX*, int (*)(SSL*, int*, void*) noexcept, void*)
    void SSL_CTX_set_alpn_select_cb(
        SSL_CTX*,
        int (*)(SSL*, const unsigned char**, unsigned char*, const unsigned char*, unsigned int, void*) noexcept,
        void*)
    void SSL_CTX_sess_set_new_cb(SSL_CTX*, int (*)(SSL*, SSL_SESSION*) noexcept)
    int SSL_CTX_set_tlsext_ticket_key_evp_cb(
        SSL_CTX*, int (*)(SSL*, unsigned char*, unsigned char*, EVP_CIPHER_CTX*, EVP_MAC_CTX*, int) noexcept)

    SSL* SSL_new(SSL_CTX*)
    void SSL_free(SSL*)
    void SSL_set_bio(SSL*, BIO*, BIO*)
    void SSL_set_accept_state(SSL*)
    void SSL_set_connect_state(SSL*)
    int SSL_do_handshake(SSL*)
    int SSL_read(SSL*, void*, int)
    int SSL_peek(SSL*, void*, int)
    int SSL_write(SSL*, const void*, int)
    int SSL_shutdown(SSL*)
    void SSL_set_shutdown(SSL*, int)
    int SSL_get_error(const SSL*, int)
    int SSL_set_ex_data(SSL*, int, void*)
    void* SSL_get_ex_data(const SSL*, int)
    SSL_CTX* SSL_set_SSL_CTX(SSL*, SSL_CTX*)
    void SSL_set_verify(SSL*, int, void*)
    int SSL_set_min_proto_version(SSL*, int)
    int SSL_set_max_proto_version(SSL*, int)
    int SSL_set_session_id_context(SSL*, const unsigned char*, unsigned int)
    int SSL_client_hello_get0_ext(SSL*, unsigned int, const unsigned char**, size_t*)
    void SSL_get0_alpn_selected(const SSL*, const unsigned char**, unsigned int*)
    int SSL_select_next_proto(
        unsigned char**, unsigned char*, const unsigned char*, unsigned int, const unsigned char*, unsigned int)
    int SSL_set_alpn_protos(SSL*, const unsigned char*, unsigned int)
    int SSL_set_tlsext_host_name(SSL*, const char*)
    int SSL_set1_host(SSL*, const char*)
    void SSL_set_hostflags(SSL*, unsigned int)
    X509_VERIFY_PARAM* SSL_get0_param(SSL*)
    int SSL_session_reused(const SSL*)
    int SSL_set_session(SSL*, SSL_SESSION*)
    void SSL_SESSION_free(SSL_SESSION*)
    int SSL_SESSION_is_resumable(const SSL_SESSION*)
    X509* SSL_get1_peer_certificate(const SSL*)
    long SSL_get_verify_result(const SSL*)
    int SSL_version(const SSL*)

    enum:
        TLS1_2_VERSION, TLS1_3_VERSION
        SSL_OP_NO_COMPRESSION, SSL_OP_NO_RENEGOTIATION, SSL_OP_CIPHER_SERVER_PREFERENCE, SSL_OP_PRIORITIZE_CHACHA
        SSL_MODE_RELEASE_BUFFERS, SSL_MODE_ENABLE_PARTIAL_WRITE, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
        SSL_SESS_CACHE_OFF, SSL_SESS_CACHE_CLIENT, SSL_SESS_CACHE_NO_INTERNAL_STORE
        SSL_VERIFY_NONE, SSL_VERIFY_PEER, SSL_VERIFY_FAIL_IF_NO_PEER_CERT
        SSL_ERROR_NONE, SSL_ERROR_SSL, SSL_ERROR_SYSCALL, SSL_ERROR_ZERO_RETURN, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE
        SSL_SENT_SHUTDOWN, SSL_RECEIVED_SHUTDOWN
        SSL_CLIENT_HELLO_SUCCESS, SSL_CLIENT_HELLO_ERROR
        SSL_TLSEXT_ERR_OK, SSL_TLSEXT_ERR_ALERT_FATAL
        SSL_AD_INTERNAL_ERROR
        OPENSSL_NPN_NEGOTIATED
        TLSEXT_TYPE_server_name
        SSL_R_HTTP_REQUEST, SSL_R_CERTIFICATE_VERIFY_FAILED

cdef extern from "<openssl/x509v3.h>":
    ctypedef struct X509:
        pass
    ctypedef struct X509_NAME:
        pass
    ctypedef struct X509_STORE:
        pass
    ctypedef struct X509_STORE_CTX:
        pass
    ctypedef struct X509_VERIFY_PARAM:
        pass
    ctypedef struct ASN1_TIME:
        pass
    struct tm:
        int tm_year
        int tm_mon
        int tm_mday
        int tm_hour
        int tm_min
        int tm_sec
    void X509_free(X509*)
    X509_NAME* X509_get_subject_name(const X509*)
    X509_NAME* X509_get_issuer_name(const X509*)
    const ASN1_TIME* X509_get0_notBefore(const X509*)
    const ASN1_TIME* X509_get0_notAfter(const X509*)
    int ASN1_TIME_to_tm(const ASN1_TIME*, tm*)
    int X509_NAME_print_ex(BIO*, const X509_NAME*, int, unsigned long)
    int X509_digest(const X509*, const EVP_MD*, unsigned char*, unsigned int*)
    int X509_check_host(X509*, const char*, size_t, unsigned int, char**)
    int X509_check_ca(X509*)
    int X509_check_issued(X509*, X509*)
    X509_STORE* X509_STORE_new()
    void X509_STORE_free(X509_STORE*)
    int X509_STORE_up_ref(X509_STORE*)
    int X509_STORE_add_cert(X509_STORE*, X509*)
    int X509_STORE_set_default_paths(X509_STORE*)
    int X509_VERIFY_PARAM_set1_ip_asc(X509_VERIFY_PARAM*, const char*)
    const char* X509_verify_cert_error_string(long)
    enum:
        XN_FLAG_RFC2253, X509_V_OK, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, GEN_URI, GEN_DNS, GEN_IPADD

cdef extern from "<openssl/pem.h>":
    X509* PEM_read_bio_X509(BIO*, X509**, int (*)(char*, int, int, void*) noexcept, void*)
    EVP_PKEY* PEM_read_bio_PrivateKey(BIO*, EVP_PKEY**, int (*)(char*, int, int, void*) noexcept, void*)

cdef extern from "<openssl/evp.h>":
    ctypedef struct EVP_PKEY:
        pass
    ctypedef struct EVP_MD:
        pass
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct EVP_MAC_CTX:
        pass
    ctypedef struct ENGINE:
        pass
    ctypedef struct OSSL_PARAM:
        pass
    void EVP_PKEY_free(EVP_PKEY*)
    const EVP_MD* EVP_sha256()
    const EVP_CIPHER* EVP_aes_256_cbc()
    int EVP_EncryptInit_ex(EVP_CIPHER_CTX*, const EVP_CIPHER*, ENGINE*, const unsigned char*, const unsigned char*)
    int EVP_DecryptInit_ex(EVP_CIPHER_CTX*, const EVP_CIPHER*, ENGINE*, const unsigned char*, const unsigned char*)
    int EVP_MAC_CTX_set_params(EVP_MAC_CTX*, const OSSL_PARAM*)

cdef extern from "<openssl/rand.h>":
    int RAND_bytes(unsigned char*, int)

cdef extern from "<openssl/bio.h>":
    ctypedef struct BIO:
        pass
    ctypedef struct BIO_METHOD:
        pass
    BIO* BIO_new(const BIO_METHOD*)
    BIO* BIO_new_mem_buf(const void*, int)
    const BIO_METHOD* BIO_s_mem()
    int BIO_free(BIO*)
    long BIO_get_mem_data(BIO*, char**)
    BIO_METHOD* BIO_meth_new(int, const char*)
    int BIO_meth_set_write(BIO_METHOD*, int (*)(BIO*, const char*, int) noexcept)
    int BIO_meth_set_read(BIO_METHOD*, int (*)(BIO*, char*, int) noexcept)
    int BIO_meth_set_ctrl(BIO_METHOD*, long (*)(BIO*, int, long, void*) noexcept)
    void BIO_set_data(BIO*, void*)
    void* BIO_get_data(BIO*)
    void BIO_set_init(BIO*, int)
    void BIO_clear_retry_flags(BIO*)
    void BIO_set_retry_read(BIO*)
    void BIO_set_retry_write(BIO*)
    enum:
        BIO_TYPE_SOURCE_SINK, BIO_CTRL_FLUSH

cdef extern from "<openssl/err.h>":
    void ERR_clear_error()
    unsigned long ERR_get_error()
    unsigned long ERR_peek_last_error()
    int ERR_GET_REASON(unsigned long)
    const char* ERR_reason_error_string(unsigned long)
