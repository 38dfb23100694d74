"""wrk against graylb, nginx, HAProxy and a byte-copying floor doing the same canary job."""
