//! A dial whose links let a test look at every trip, and do something of its own just before one.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use redis::{Pipeline, Value};
use stepfleet_coordinator::store::link::{Dial, Link, LinkError};

/// Something that a test does before a trip.
pub(crate) type Act = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What is done with the replies of a trip.
type After = dyn Fn(&[Value]) + Send + Sync;

/// Looks at trips of the links of another dial.
#[derive(Clone)]
pub(crate) struct Tap<D> {
    dial: D,
    before: Arc<dyn Fn(&Pipeline) -> Act + Send + Sync>,
    after: Arc<After>,
}

/// A link of a [`Tap`].
pub(crate) struct Tapped<D: Dial> {
    link: D::Link,
    tap: Tap<D>,
}

impl<D: Dial> Tap<D> {
    fn new(dial: D) -> Self {
        let before = Arc::new(|_: &Pipeline| -> Act { Box::pin(std::future::ready(())) });
        Self { dial, before, after: Arc::new(|_| {}) }
    }

    /// Awaits `before` before each trip.
    pub(crate) fn before(dial: D, before: impl Fn(&Pipeline) -> Act + Send + Sync + 'static) -> Self {
        Self { before: Arc::new(before), ..Self::new(dial) }
    }

    /// Shows the replies of each trip to `after`.
    pub(crate) fn after(dial: D, after: impl Fn(&[Value]) + Send + Sync + 'static) -> Self {
        Self { after: Arc::new(after), ..Self::new(dial) }
    }
}

impl<D: Dial> Dial for Tap<D> {
    type Link = Tapped<D>;

    async fn dial(&self, slot: u16, response_timeout: Duration) -> Result<Tapped<D>, LinkError> {
        Ok(Tapped { link: self.dial.dial(slot, response_timeout).await?, tap: self.clone() })
    }

    fn node(&self, slot: u16) -> u64 {
        self.dial.node(slot)
    }

    fn is_cluster(&self) -> bool {
        self.dial.is_cluster()
    }

    async fn refresh(&self) {
        self.dial.refresh().await;
    }
}

impl<D: Dial> Link for Tapped<D> {
    async fn trip(&mut self, pipe: &Pipeline) -> Result<Vec<Value>, LinkError> {
        (self.tap.before)(pipe).await;
        let replies = self.link.trip(pipe).await?;
        (self.tap.after)(&replies);
        Ok(replies)
    }
}

/// Whether a command of the pipeline contains these bytes in one of its arguments.
pub(crate) fn mentions(pipe: &Pipeline, text: &str) -> bool {
    let found = |arg: redis::Arg<&[u8]>| matches!(arg, redis::Arg::Simple(bytes) if bytes.windows(text.len()).any(|part| part == text.as_bytes()));
    pipe.cmd_iter().any(|cmd| cmd.args_iter().any(found))
}

/// Bytes of the texts in replies.
pub(crate) fn bytes(replies: &[Value]) -> usize {
    let of = |value: &Value| match value {
        Value::BulkString(bytes) => bytes.len(),
        Value::Array(items) => bytes(items),
        _ => 0,
    };
    replies.iter().map(of).sum()
}
