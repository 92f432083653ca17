//! What a comparison with a real server cannot show: time, faults, rollback.
