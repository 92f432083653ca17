//! Which role each route needs: one table, and the same in the description of the API.
//!
//! What is not in the table needs the most, so that a route that somebody forgot is closed and not open.

use utoipa::openapi::{
    OpenApi, RefOr, Response,
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use super::tokens::Role;

/// The name of the tokens in the description of the API.
const SCHEME: &str = "token";

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing.
    Nothing,
    /// A token with this role or a higher one.
    Role(Role),
}

const OPEN: Need = Need::Nothing;
const VIEW: Need = Need::Role(Role::Viewer);
const OPERATE: Need = Need::Role(Role::Operator);
const ADMIN: Need = Need::Role(Role::Admin);

const TABLE: &[(&str, &str, Need)] = &[
    ("GET", "/livez", OPEN),
    ("GET", "/readyz", OPEN),
    ("GET", "/api/v1/openapi.json", OPEN),
    ("GET", "/metrics", VIEW),
    ("GET", "/api/v1/metrics/runs", VIEW),
    // Runs.
    ("GET", "/api/v1/runs", VIEW),
    ("POST", "/api/v1/runs", OPERATE),
    ("POST", "/api/v1/runs/bulk", OPERATE),
    ("GET", "/api/v1/runs/{id}", VIEW),
    ("GET", "/api/v1/runs/{id}/explain", VIEW),
    ("GET", "/api/v1/runs/{id}/steps", VIEW),
    ("GET", "/api/v1/runs/{id}/history", VIEW),
    ("GET", "/api/v1/runs/{id}/calls", VIEW),
    ("GET", "/api/v1/runs/{id}/input", VIEW),
    ("GET", "/api/v1/runs/{id}/output", VIEW),
    ("POST", "/api/v1/runs/{id}/cancel", OPERATE),
    ("POST", "/api/v1/runs/{id}/suspend", OPERATE),
    ("POST", "/api/v1/runs/{id}/resume", OPERATE),
    ("POST", "/api/v1/runs/{id}/retry", OPERATE),
    ("POST", "/api/v1/runs/{id}/resolve", OPERATE),
    ("POST", "/api/v1/runs/{id}/compensate", OPERATE),
    // The same under other names.
    ("GET", "/workers/health", VIEW),
    ("GET", "/workers/stats", VIEW),
    ("GET", "/api/v1/workflow", VIEW),
    ("GET", "/api/v1/workflow/metrics", VIEW),
    ("GET", "/api/v1/workflow/{id}/status", VIEW),
    ("GET", "/api/v1/workflow/{id}/history", VIEW),
    ("POST", "/api/v1/workflow/{id}/cancel", OPERATE),
    ("POST", "/api/v1/workflow/{id}/suspend", OPERATE),
    ("POST", "/api/v1/workflow/{id}/resume", OPERATE),
    ("POST", "/api/v1/workflow/{id}/retry", OPERATE),
    // Workflows.
    ("GET", "/api/v1/workflows", VIEW),
    ("POST", "/api/v1/workflows", OPERATE),
    ("POST", "/api/v1/workflows/check", OPERATE),
    ("GET", "/api/v1/workflows/schema", VIEW),
    ("GET", "/api/v1/workflows/{name}", VIEW),
    // Dead letters and campaigns over them.
    ("GET", "/api/v1/dead-letters", VIEW),
    ("GET", "/api/v1/dead-letters/groups", VIEW),
    ("GET", "/api/v1/dead-letters/{id}", VIEW),
    ("POST", "/api/v1/dead-letters/{id}/replay", OPERATE),
    ("POST", "/api/v1/dead-letters/{id}/discard", OPERATE),
    ("GET", "/api/v1/campaigns", VIEW),
    ("POST", "/api/v1/campaigns", OPERATE),
    ("GET", "/api/v1/campaigns/{id}", VIEW),
    ("GET", "/api/v1/campaigns/{id}/items", VIEW),
    ("POST", "/api/v1/campaigns/{id}/pause", OPERATE),
    ("POST", "/api/v1/campaigns/{id}/resume", OPERATE),
    ("POST", "/api/v1/campaigns/{id}/cancel", OPERATE),
    // The fleet.
    ("GET", "/api/v1/workers", VIEW),
    ("GET", "/api/v1/workers/health", VIEW),
    ("GET", "/api/v1/workers/stats", VIEW),
    ("GET", "/api/v1/workers/{id}", VIEW),
    ("POST", "/api/v1/workers/{id}/drain", OPERATE),
    ("GET", "/api/v1/queues", VIEW),
    ("POST", "/api/v1/queues/{name}/pause", OPERATE),
    ("POST", "/api/v1/queues/{name}/resume", OPERATE),
    ("GET", "/api/v1/breakers", VIEW),
    ("GET", "/api/v1/breakers/{name}", VIEW),
    ("POST", "/api/v1/breakers/{name}/open", OPERATE),
    ("POST", "/api/v1/breakers/{name}/close", OPERATE),
    ("POST", "/api/v1/breakers/{name}/reset", OPERATE),
    ("GET", "/api/v1/limits", VIEW),
    // What holds for the whole fleet.
    ("GET", "/api/v1/policies", VIEW),
    ("PUT", "/api/v1/policies", ADMIN),
    ("GET", "/api/v1/policies/effective", VIEW),
    ("GET", "/api/v1/policies/history", VIEW),
    ("GET", "/api/v1/policies/schema", VIEW),
    ("GET", "/api/v1/partitions", VIEW),
    ("POST", "/api/v1/partitions", ADMIN),
    ("GET", "/api/v1/quarantine", VIEW),
    ("GET", "/api/v1/quarantine/{id}", VIEW),
    ("DELETE", "/api/v1/quarantine/{id}", ADMIN),
    ("GET", "/api/v1/audit", VIEW),
    ("GET", "/api/v1/subscribers", VIEW),
    ("GET", "/api/v1/subscribers/undelivered", VIEW),
    ("GET", "/api/v1/doctor", VIEW),
    ("POST", "/api/v1/doctor/fix", ADMIN),
    ("GET", "/api/v1/doctor/audit", VIEW),
    ("POST", "/api/v1/doctor/audit", OPERATE),
];

/// What a request to this route needs. Without a route there is nothing to see, but only for those who may look around.
pub(super) fn need(method: &str, route: Option<&str>) -> Need {
    let Some(route) = route else { return VIEW };
    entry(method, route).unwrap_or(ADMIN)
}

fn entry(method: &str, route: &str) -> Option<Need> {
    // Where there is a GET there is a HEAD.
    let method = if method == "HEAD" { "GET" } else { method };
    TABLE.iter().find(|(m, r, _)| (*m, *r) == (method, route)).map(|(_, _, need)| *need)
}

/// Writes into the description of the API what each operation needs.
pub(super) fn describe(api: &mut OpenApi) {
    let text =
        "A token from the coordinator's tokens file, if it was given one. Each operation names the role it needs.";
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(text)).build();
    api.components.get_or_insert_default().add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
    for (path, item) in &mut api.paths.paths {
        let operations = [
            ("GET", &mut item.get),
            ("PUT", &mut item.put),
            ("POST", &mut item.post),
            ("DELETE", &mut item.delete),
            ("PATCH", &mut item.patch),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let Need::Role(role) = need(method, Some(path)) else {
                operation.security = Some(Vec::new());
                continue;
            };
            operation.security = Some(vec![SecurityRequirement::new(SCHEME, [role.as_str()])]);
            let responses = &mut operation.responses.responses;
            for (status, text) in [("401", "no token, or one that is nobody's"), ("403", "another role is needed")] {
                responses.entry(status.to_owned()).or_insert_with(|| RefOr::T(Response::new(text)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every operation of the description, with the roles it names.
    fn described() -> Vec<(String, String, Vec<String>)> {
        let api = serde_json::to_value(super::super::openapi()).expect("JSON");
        let mut all = Vec::new();
        for (path, item) in api["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                let needs = operation["security"].as_array().unwrap_or_else(|| panic!("{method} {path} says nothing"));
                let roles = needs.iter().flat_map(|need| need[SCHEME].as_array().expect("roles"));
                let roles = roles.map(|role| role.as_str().expect("a name").to_owned()).collect();
                all.push((method.to_uppercase(), path.clone(), roles));
            }
        }
        assert!(all.len() > 60, "{} operations", all.len());
        all
    }

    #[test]
    fn every_route_of_the_description_has_its_entry_and_names_its_role() {
        for (method, path, roles) in described() {
            let expected: &[&str] = match entry(&method, &path) {
                Some(Need::Role(role)) => &[role.as_str()],
                Some(Need::Nothing) => &[],
                None => panic!("{method} {path} has no entry in the table of roles"),
            };
            assert_eq!(roles, expected, "{method} {path}");
        }
    }

    #[test]
    fn every_entry_is_of_a_route_that_there_is() {
        let mut known: BTreeSet<(String, String)> = described().into_iter().map(|(m, p, _)| (m, p)).collect();
        known.insert(("GET".into(), "/api/v1/openapi.json".into()));
        for (method, path, _) in TABLE {
            let is_other_name = path.starts_with("/api/v1/workflow/")
                || ["/api/v1/workflow", "/workers/health", "/workers/stats"].contains(path);
            assert!(is_other_name || known.contains(&((*method).into(), (*path).into())), "{method} {path}");
        }
        let once: BTreeSet<_> = TABLE.iter().map(|(method, path, _)| (method, path)).collect();
        assert_eq!(once.len(), TABLE.len(), "each route once");
    }

    #[test]
    fn what_changes_something_is_not_for_viewers_and_what_is_forgotten_is_for_admins() {
        for (method, path, need) in TABLE {
            assert!(*method == "GET" || matches!(need, Need::Role(role) if *role > Role::Viewer), "{method} {path}");
        }
        assert_eq!(need("POST", Some("/api/v1/forgotten")), Need::Role(Role::Admin));
        assert_eq!(need("PATCH", Some("/api/v1/runs")), Need::Role(Role::Admin));
        assert_eq!(need("HEAD", Some("/livez")), Need::Nothing);
        assert_eq!(need("GET", None), Need::Role(Role::Viewer));
    }
}
