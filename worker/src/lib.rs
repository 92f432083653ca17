//! The library with which people write workers, and the stock handlers.
//!
//! A worker takes jobs of its queues from Redis streams, runs their handlers and reports what became of them. It never
//! acks a job: the coordinator does, in the moment in which it records the result. So a job is delivered at least once,
//! and a handler makes its own side effects idempotent with [`Attempt::idempotency_key`].
//!
//! ```no_run
//! use stepfleet_worker::{Attempt, Failure, Worker};
//!
//! #[derive(serde::Deserialize)]
//! struct Order { amount: u32 }
//! #[derive(serde::Serialize)]
//! struct Receipt { id: String }
//!
//! # async fn start() -> Result<(), Box<dyn std::error::Error>> {
//! Worker::builder()
//!     .redis("redis://127.0.0.1:6379")
//!     .queue("payments")
//!     .handler("charge", |attempt: Attempt, order: Order| async move {
//!         if order.amount == 0 {
//!             return Err(Failure::permanent("nothing to charge").code("amount_zero"));
//!         }
//!         Ok(Receipt { id: attempt.idempotency_key() })
//!     })
//!     .run()
//!     .await?;
//! # Ok(())
//! # }
//! ```

mod attempt;
mod backoff;
mod beat;
mod builder;
mod calls;
mod classify;
mod control;
mod duties;
mod failure;
mod gates;
mod handler;
mod health;
mod kit;
pub mod limits;
mod metrics;
mod runner;
mod session;
mod sink;
mod source;
mod stock;
mod table;
mod trace;
mod value;

pub use attempt::Attempt;
pub use builder::{BuildError, Builder, Error, RunError, Worker};
pub use calls::ExternalCall;
pub use classify::{Classifier, ErrorContext, Evidence, Exit, StandardClassifier, Verdict};
pub use failure::Failure;
pub use metrics::families as metric_families;
pub use stepfleet_connect::Settings;
pub use stepfleet_protocol::failure::Category;
pub use trace::{Parentage, Tracing};
