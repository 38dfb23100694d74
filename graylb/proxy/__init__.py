"""The only floor with data sockets: the worker process around the engine. Import the module you need."""
