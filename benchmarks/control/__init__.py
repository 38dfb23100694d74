"""The control plane under load: how fast a key decides requests, and what a storm, an outage or a death costs."""
