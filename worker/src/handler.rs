//! Handlers: the named code that does a step, behind one untyped call.

use std::{future::Future, marker::PhantomData};

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};
use stepfleet_protocol::limits::PAYLOAD_BYTES_MAX;

use crate::{attempt::Attempt, failure::Failure, value};

/// What came of one call: the output in MessagePack, none for `null`.
pub(crate) type Called = Result<Option<Bytes>, Failure>;

/// A handler without its types.
pub(crate) trait Call: Send + Sync {
    /// Reads the input, runs the handler, writes the output.
    fn call(&self, attempt: Attempt, input: Bytes) -> BoxFuture<'static, Called>;
}

/// A function with typed input and output as a [`Call`].
pub(crate) struct Typed<F, I> {
    function: F,
    input: PhantomData<fn(I)>,
}

impl<F, I> Typed<F, I> {
    pub(crate) fn new(function: F) -> Self {
        Self { function, input: PhantomData }
    }
}

impl<F, I, O, Fut> Call for Typed<F, I>
where
    F: Fn(Attempt, I) -> Fut + Send + Sync + 'static,
    I: DeserializeOwned + 'static,
    O: Serialize + 'static,
    Fut: Future<Output = Result<O, Failure>> + Send + 'static,
{
    fn call(&self, attempt: Attempt, input: Bytes) -> BoxFuture<'static, Called> {
        match value::read::<I>(&input) {
            Ok(input) => {
                let work = (self.function)(attempt, input);
                Box::pin(async move { output_of(&work.await?) })
            }
            Err(error) => {
                let failure = Failure::data(format!("the input does not fit the handler: {error}")).code("bad_input");
                Box::pin(std::future::ready(Err(failure)))
            }
        }
    }
}

fn output_of<O: Serialize>(output: &O) -> Called {
    let bytes = value::write(output)
        .map_err(|error| Failure::permanent(format!("the output cannot be written: {error}")).code("bad_output"))?;
    if bytes.len() > PAYLOAD_BYTES_MAX {
        let message = format!(
            "the output has {} bytes, allowed are {PAYLOAD_BYTES_MAX}; hint: store it elsewhere and return where",
            bytes.len()
        );
        return Err(Failure::permanent(message).code("output_too_large"));
    }
    Ok((!value::is_null(&bytes)).then_some(bytes))
}
