"""The configuration: documents as people write them, snapshots as the proxy obeys them. Import the module you need."""
