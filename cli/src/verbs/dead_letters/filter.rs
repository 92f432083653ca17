//! Which dead letters, as options.

use clap::Args;
use stepfleet_protocol::{duration::Millis, failure::Category};

use crate::api::Call;

/// The options, for those that exclude them.
pub(super) const NAMES: [&str; 10] =
    ["workflow", "handler", "queue", "category", "cause", "fingerprint", "older_than", "newer_than", "text", "cursor"];

/// Causes of a dead letter, as the API spells them.
const CAUSES: [&str; 6] = ["exhausted", "permanent", "data", "poison", "expired", "compensation"];

/// Which dead letters.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Filter {
    /// Only of this workflow.
    #[arg(long, value_name = "NAME")]
    pub(super) workflow: Option<String>,
    /// Only of this handler.
    #[arg(long, value_name = "NAME")]
    pub(super) handler: Option<String>,
    /// Only of this queue.
    #[arg(long, value_name = "NAME")]
    pub(super) queue: Option<String>,
    /// Only of this category of errors.
    #[arg(long, value_name = "CATEGORY", value_parser = category)]
    pub(super) category: Option<Category>,
    /// Only those that gave up for this cause.
    #[arg(long, value_name = "CAUSE", value_parser = CAUSES)]
    cause: Option<String>,
    /// Only of this group: 16 hex digits, see `dead-letters groups`.
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
    /// Only those that are at least this old: `2h`.
    #[arg(long, value_name = "TIME")]
    older_than: Option<Millis>,
    /// Only those that are younger than this: `30m`.
    #[arg(long, value_name = "TIME")]
    newer_than: Option<Millis>,
    /// Only those whose last message contains this.
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
}

fn category(text: &str) -> Result<Category, String> {
    let found = Category::ALL.into_iter().find(|category| category.as_str() == text);
    found.ok_or_else(|| format!("allowed are {}", Category::ALL.map(Category::as_str).join(", ")))
}

impl Filter {
    /// Whether nothing is said.
    pub(crate) fn is_empty(&self) -> bool {
        self.body() == serde_json::json!({})
    }

    /// With the query parameters of this filter.
    pub(super) fn apply<'a>(&self, call: Call<'a>) -> Call<'a> {
        call.query("workflow", self.workflow.as_ref())
            .query("handler", self.handler.as_ref())
            .query("queue", self.queue.as_ref())
            .query("category", self.category)
            .query("cause", self.cause.as_ref())
            .query("fingerprint", self.fingerprint.as_ref())
            .query("older_than_ms", self.older_than.map(|time| time.0))
            .query("newer_than_ms", self.newer_than.map(|time| time.0))
            .query("text", self.text.as_ref())
    }

    /// As the API takes it in a body.
    pub(crate) fn body(&self) -> serde_json::Value {
        let all: [(&str, Option<serde_json::Value>); 9] = [
            ("workflow", self.workflow.as_ref().map(|name| name.as_str().into())),
            ("handler", self.handler.as_ref().map(|name| name.as_str().into())),
            ("queue", self.queue.as_ref().map(|name| name.as_str().into())),
            ("category", self.category.map(|category| category.as_str().into())),
            ("cause", self.cause.as_ref().map(|cause| cause.as_str().into())),
            ("fingerprint", self.fingerprint.as_ref().map(|hex| hex.as_str().into())),
            ("older_than_ms", self.older_than.map(|time| time.0.into())),
            ("newer_than_ms", self.newer_than.map(|time| time.0.into())),
            ("text", self.text.as_ref().map(|text| text.as_str().into())),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// In words, for a question.
    pub(crate) fn described(&self) -> String {
        let parts = [
            self.workflow.as_ref().map(|name| format!("workflow `{name}`")),
            self.handler.as_ref().map(|name| format!("handler `{name}`")),
            self.queue.as_ref().map(|name| format!("queue `{name}`")),
            self.category.map(|category| format!("category `{category}`")),
            self.cause.as_ref().map(|cause| format!("cause `{cause}`")),
            self.fingerprint.as_ref().map(|hex| format!("group `{hex}`")),
            self.older_than.map(|time| format!("an age of {time} or more")),
            self.newer_than.map(|time| format!("an age below {time}")),
            self.text.as_ref().map(|text| format!("text `{}`", crate::out::plain(text))),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            "ALL dead letters".to_owned()
        } else {
            format!("all dead letters of {}", parts.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_says_how_much_is_meant() {
        let mut filter = Filter::default();
        assert_eq!(filter.described(), "ALL dead letters");
        filter.workflow = Some("orders".into());
        filter.category = Some(Category::Data);
        assert_eq!(filter.described(), "all dead letters of workflow `orders`, category `data`");
        assert!(category("dta").expect_err("unknown").contains("worker_lost"));
    }
}
