//! Harness, end to end, simulation, chaos, benchmarks, tidiness.
