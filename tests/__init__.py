"""The tests, and the harness that gives them a libvirtd of their own."""
