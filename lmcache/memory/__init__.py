"""The pool and its index as files, the allocator, client locks. Knows no key policy, no socket."""
