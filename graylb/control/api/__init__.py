"""The admin API, one responsibility a file: who may call (`guard`), bodies and answers, and the routers."""
