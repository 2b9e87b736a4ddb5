"""Find first errors with another model than the policy: a process reward model, or a judge on a server."""
