//! The library with which people write workers, and the stock handlers.
