//! Who follows the outbox, how far each is, and what was not delivered.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use serde::Deserialize;
use stepfleet_protocol::id::PartitionId;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AppState,
    error::ApiResult,
    take::{self, Paging, Params},
    view::{FollowedFleet, FollowedPartition, Page, Problem, SubscriberView, UndeliveredView},
};
use crate::{
    store::{client::Client, outbox::Feed, read::audit::AuditId},
    time::rfc3339,
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(undelivered))
}

/// Lists the subscribers of the outbox by name.
#[utoipa::path(get, path = "/api/v1/subscribers", tag = "operation", params(Paging),
    responses((status = 200, body = Page<SubscriberView>), (status = "4XX", body = Problem)))]
async fn list(State(app): State<AppState>, Params(p): Params<Paging>) -> ApiResult<Json<Page<SubscriberView>>> {
    let (limit, after) = (take::limit(p.limit)?, p.cursor.unwrap_or_default());
    let mut items = views(&app.client).await?;
    items.retain(|view| view.name > after);
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|view| view.name.clone());
    Ok(Json(Page { items, next }))
}

/// Every subscriber, by name.
pub(super) async fn views(client: &Client) -> ApiResult<Vec<SubscriberView>> {
    let mut views = BTreeMap::<String, SubscriberView>::new();
    for found in client.subscribers().await? {
        let name = found.subscriber.clone();
        let view = views.entry(name.clone()).or_insert_with(|| SubscriberView { name, ..SubscriberView::default() });
        view.lag += found.lag;
        view.lag_ms = view.lag_ms.max(found.lag_ms);
        view.delivered += found.cursor.delivered;
        view.undelivered += found.cursor.undelivered;
        view.missed += found.cursor.missed;
        let (entry, lag, lag_ms) = (found.cursor.entry.to_string(), found.lag, found.lag_ms);
        match found.feed {
            Feed::Partition(PartitionId(partition)) => {
                view.partitions.push(FollowedPartition { partition, entry, lag, lag_ms });
            }
            Feed::Fleet => view.fleet = Some(FollowedFleet { entry, lag, lag_ms }),
        }
    }
    Ok(views.into_values().collect())
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct UndeliveredParams {
    /// Of this subscriber.
    subscriber: Option<String>,
    /// 1 to 100; 20 if it is left out.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// Lists entries of the outbox that were set aside because a subscriber did not take them, newest first.
#[utoipa::path(get, path = "/api/v1/subscribers/undelivered", tag = "operation", params(UndeliveredParams),
    responses((status = 200, body = Page<UndeliveredView>), (status = "4XX", body = Problem)))]
async fn undelivered(
    State(app): State<AppState>,
    Params(p): Params<UndeliveredParams>,
) -> ApiResult<Json<Page<UndeliveredView>>> {
    let after = take::cursor::<AuditId>(p.cursor.as_deref())?;
    let page = app.client.undelivered(p.subscriber.as_deref(), after, take::limit(p.limit)?).await?;
    let items = page.items.into_iter().map(|(id, found)| UndeliveredView {
        id: id.to_string(),
        at: rfc3339(id.entry.ms),
        subscriber: found.subscriber,
        entry: found.entry.to_string(),
        error: found.error,
        attempts: found.attempts,
    });
    Ok(Json(Page { items: items.collect(), next: page.next.map(|id| id.to_string()) }))
}
