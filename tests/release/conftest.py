from hypothesis import settings

# Laws say nothing of time, and machines that run tests are busy.
settings.register_profile("laws", deadline=None)
settings.load_profile("laws")
