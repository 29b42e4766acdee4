"""The demo's teacher: a made-up support desk's task, and a small model that learns it here."""
