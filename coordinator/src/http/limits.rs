//! Limits: how much of one handler, or with one target, the fleet does, and what waits for it.

use axum::{Json, extract::State};
use stepfleet_protocol::gate::Gate;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::ApiResult,
    take::{self, Paging, Params},
    view::{LimitView, Page, Problem},
};
use crate::machine::{limits::Limit, rules::Rules};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Lists the limits of the fleet's policies by name, with what is in use and what waits.
#[utoipa::path(get, path = "/api/v1/limits", tag = "gates", params(Paging),
    responses((status = 200, body = Page<LimitView>), (status = "4XX", body = Problem)))]
async fn list(State(app): State<AppState>, Params(p): Params<Paging>) -> ApiResult<Json<Page<LimitView>>> {
    let limit = take::limit(p.limit)?;
    let stored = app.client.policies().await?;
    let rules = Rules::new(stored.version, stored.policies);
    let behind = rules.limits().into_iter().skip_while(|(gate, _)| p.cursor.as_deref() >= Some(gate.as_str()));
    let mut found: Vec<(Gate, Limit)> = behind.take(limit + 1).collect();
    let more = found.len() > limit;
    found.truncate(limit);
    let gates: Vec<Gate> = found.iter().map(|(gate, _)| gate.clone()).collect();
    let mut items = Vec::with_capacity(found.len());
    for ((gate, limit), parked) in found.iter().zip(app.client.parked(&gates).await?) {
        let used = app.client.limit_in_use(gate).await?;
        let rate = rules.policies.limits.get(gate.as_str()).and_then(|policy| policy.rate);
        items.push(LimitView {
            name: gate.to_string(),
            concurrency: limit.concurrency,
            used: limit.concurrency.map(|_| used),
            rate: rate.map(|rate| rate.to_string()),
            burst: rate.map(|_| limit.burst),
            parked,
        });
    }
    let next = gates.last().filter(|_| more).map(ToString::to_string);
    Ok(Json(Page { items, next }))
}
