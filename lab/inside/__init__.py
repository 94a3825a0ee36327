"""What runs inside the lab: Python's standard library, and Debian's libvirt binding.

Nothing here shares code with the agent, so that it can testify against it.
"""
