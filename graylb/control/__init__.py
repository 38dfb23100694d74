"""Where configuration comes from and how it reaches the workers. Import the module you need."""
