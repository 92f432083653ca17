//! `http`: one request.

mod exchange;

use std::collections::BTreeMap;

use reqwest::{RequestBuilder, Url};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use stepfleet_protocol::duration::Millis;

use self::exchange::{Heard, bad, exchange, request_of};
use crate::{
    attempt::Attempt,
    calls::{ExternalCall, Sent, Settled},
    failure::Failure,
};

/// Bytes of an answer that are accepted unless the input says otherwise.
const MAX_BYTES: usize = 1 << 20;
/// What stands for the idempotency key in the address of `settle`.
const KEY_PLACE: &str = "{idempotency_key}";

/// Input of `http`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Http {
    /// `GET` unless set.
    #[serde(default)]
    method: Option<String>,
    /// Where to.
    url: String,
    /// Headers; they stand before those that are sent by default.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// The body: a text as it is, anything else as JSON.
    #[serde(default)]
    body: Option<Json>,
    /// The body as JSON, a text too.
    #[serde(default)]
    json: Option<Json>,
    /// The time for all of it; else the attempt's own.
    #[serde(default)]
    timeout: Option<Millis>,
    /// Bytes of the answer that are accepted.
    #[serde(default)]
    max_bytes: Option<usize>,
    /// Statuses that are as good as 2xx, and then the only good ones.
    #[serde(default)]
    expect: Vec<u16>,
    /// How the request is kept from taking effect twice.
    #[serde(default)]
    idempotency: Idempotency,
    /// How to find out what became of a request, with `two-phase`.
    #[serde(default)]
    settle: Option<Settle>,
}

/// How a request is kept from taking effect twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Idempotency {
    /// Not at all.
    None,
    /// It carries the step's idempotency key.
    #[default]
    Key,
    /// It carries the key, and is on record before and after.
    TwoPhase,
}

/// The request that asks what became of an earlier one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settle {
    /// `GET` unless set.
    #[serde(default)]
    method: Option<String>,
    /// Where to; `{idempotency_key}` in it stands for the key.
    url: String,
    /// Headers. The key goes along as `Idempotency-Key`.
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// Output of `http`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Json,
    /// The body was longer than is accepted: the answer is of no use.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

/// Sends the request and sorts the answer.
pub(super) async fn http(attempt: Attempt, input: Http) -> Result<Answer, Failure> {
    if input.settle.is_some() && input.idempotency != Idempotency::TwoPhase {
        return Err(bad("settle is set, and idempotency is not `two-phase`".to_owned()));
    }
    let max_bytes = input.max_bytes.unwrap_or(MAX_BYTES);
    let answer = if input.idempotency == Idempotency::TwoPhase {
        two_phase(&attempt, &input, max_bytes).await?
    } else {
        let key = (input.idempotency == Idempotency::Key).then(|| attempt.idempotency_key());
        let request = request_of(&attempt, &input, key.as_deref())?;
        match exchange(&attempt, request, &input.expect, max_bytes).await {
            Heard::Good(answer) => answer,
            Heard::Refused { failure, .. } | Heard::Silence { failure, .. } => return Err(failure),
        }
    };
    if answer.truncated {
        let message = format!("the answer is longer than max_bytes, {max_bytes} bytes");
        return Err(Failure::permanent(message).code("answer_too_large"));
    }
    Ok(answer)
}

/// The request as a call on record.
async fn two_phase(attempt: &Attempt, input: &Http, max_bytes: usize) -> Result<Answer, Failure> {
    if input.headers.keys().any(|name| name.eq_ignore_ascii_case("idempotency-key")) {
        return Err(bad("headers has `Idempotency-Key`, which idempotency `two-phase` sets itself".to_owned()));
    }
    let call = attempt.call("http").method(&input.method.as_deref().unwrap_or("GET").to_ascii_uppercase());
    let call = call.endpoint(&public(&input.url));
    // Both are made before anything is recorded: what is wrong with the input shows at once.
    let request = request_of(attempt, input, Some(call.key()))?;
    let question = question_of(attempt, input, &call)?;
    let ask = question.map(|question| {
        async move || match exchange(attempt, question, &[], max_bytes).await {
            Heard::Good(answer) => Settled::Done { status: Some(answer.status), value: answer },
            Heard::Refused { status: 404, .. } => Settled::Absent,
            Heard::Refused { failure, .. } | Heard::Silence { failure, .. } => Settled::Unknown(failure),
        }
    });
    let send = async move || match exchange(attempt, request, &input.expect, max_bytes).await {
        Heard::Good(answer) => Sent::Done { status: Some(answer.status), value: answer },
        // A gateway that got no answer does not know either.
        Heard::Refused { status: status @ (502 | 504), failure } => Sent::Unknown { failure, status: Some(status) },
        Heard::Refused { status, failure } => Sent::Refused { failure, status: Some(status) },
        Heard::Silence { sent: false, failure } => Sent::Refused { failure, status: None },
        Heard::Silence { sent: true, failure } => Sent::Unknown { failure, status: None },
    };
    call.drive(ask, send).await
}

fn question_of(attempt: &Attempt, input: &Http, call: &ExternalCall) -> Result<Option<RequestBuilder>, Failure> {
    let Some(settle) = &input.settle else { return Ok(None) };
    let question = Http {
        method: settle.method.clone(),
        url: settle.url.replace(KEY_PLACE, &escaped(call.key())),
        headers: settle.headers.clone(),
        body: None,
        json: None,
        timeout: input.timeout,
        max_bytes: None,
        expect: Vec::new(),
        idempotency: Idempotency::Key,
        settle: None,
    };
    request_of(attempt, &question, Some(call.key())).map(Some).map_err(|failure| {
        let message = format!("settle: {}", failure.wire().message);
        failure.message(message)
    })
}

/// For an address: everything but letters, digits and `-._~` as `%XX`.
fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// An address without what may be secret in it: user, password, query and fragment.
fn public(url: &str) -> String {
    Url::parse(url).map_or_else(
        |_| String::new(),
        |mut url| {
            let _has_none = url.set_username("").and_then(|()| url.set_password(None));
            url.set_query(None);
            url.set_fragment(None);
            url.into()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_of_an_address_holds_no_secret() {
        assert_eq!(public("https://user:pass@pay.example/charges?token=x#y"), "https://pay.example/charges");
        assert_eq!(public("nowhere"), "");
        assert_eq!(escaped("019a/pay/1"), "019a%2Fpay%2F1");
    }
}
