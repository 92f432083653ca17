//! What crosses Redis: ids, keys, messages, states, limits. No I/O.
