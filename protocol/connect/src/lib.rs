//! How a program finds and reaches Redis: one server, Sentinel or Cluster.
