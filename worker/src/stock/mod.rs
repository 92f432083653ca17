//! The stock handlers: what many steps need, without a worker of one's own.

mod exec;
mod fail;
mod http;
mod sleep;

use crate::builder::Builder;

/// Adds them all.
pub(crate) fn register(builder: Builder) -> Builder {
    builder
        .handler("noop", |_, _: serde::de::IgnoredAny| std::future::ready(Ok(())))
        .handler("sleep", sleep::sleep)
        .handler("fail", fail::fail)
        .handler("exec", exec::exec)
        .handler("http", http::http)
}
