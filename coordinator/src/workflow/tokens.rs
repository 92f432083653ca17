//! Reading the file of API tokens: names, roles and hashes. A token itself stands in no file that a coordinator reads.

use std::{collections::HashMap, fmt, str::FromStr};

use serde::Serialize;
use stepfleet_protocol::name::Name;

use super::{
    fields::{NAME_ALLOWED, Path, Reader},
    report::{Complaint, Report, shown},
    tree::{Kind, Node},
};

/// Tokens that one file may name.
pub const TOKENS_MAX: usize = 1_000;

const ALLOWED: &str = "a list of maps with `name`, `role` and `sha256`";
const DIGEST_ALLOWED: &str = "the SHA-256 of the token in 64 hexadecimal digits";

/// What the holder of a token may do. Each role may do all that the one before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look at everything.
    Viewer,
    /// Submit runs, register workflows, and act on runs, dead letters, queues, breakers and workers.
    Operator,
    /// Change what holds for the whole fleet: policies, partitions, repairs.
    Admin,
}

impl Role {
    /// Every role, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| format!("bad role `{}`: allowed are `viewer`, `operator` and `admin`", shown(text)))
    }
}

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenEntry {
    /// Who: the actor in history and audit.
    pub name: Name,
    /// What that token may do.
    pub role: Role,
    /// SHA-256 of the token.
    pub sha256: [u8; 32],
}

/// The tokens that the tree describes; at least one.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn read(root: &Node) -> Result<Vec<TokenEntry>, Report> {
    let mut reader = Reader::default();
    let tokens = tokens(&mut reader, root).unwrap_or_default();
    let report = reader.report.sorted();
    if report.problems.is_empty() { Ok(tokens) } else { Err(report) }
}

fn tokens(r: &mut Reader, root: &Node) -> Option<Vec<TokenEntry>> {
    let here = Path::ROOT;
    let fields = r.fields(root, &here, &["tokens"])?;
    let node = r.required(&fields, &here, "tokens", ALLOWED)?;
    let here = here.key("tokens");
    let Kind::List(items) = &node.kind else {
        r.wrong_type(node, &here, ALLOWED);
        return None;
    };
    if items.is_empty() || items.len() > TOKENS_MAX {
        let found = Complaint::new(format!("{} tokens", items.len()));
        r.complain(node.at, &here, found.allowed(format!("1 to {TOKENS_MAX}")));
        return None;
    }
    let mut found: Vec<TokenEntry> = Vec::with_capacity(items.len());
    let (mut roles, mut digests) = (HashMap::new(), HashMap::new());
    for (index, item) in items.iter().enumerate() {
        let path = here.item(index);
        let Some(token) = token(r, item, &path) else { continue };
        // Two tokens of one name are how one takes the place of the other; two roles of one name would be a riddle.
        let role = *roles.entry(token.name.clone()).or_insert(token.role);
        if role != token.role {
            let complaint = Complaint::new(format!("`{}` is `{role}` further up", token.name));
            r.complain(item.at, &path.key("role"), complaint.allowed("one role for all tokens of a name"));
        }
        if let Some(first) = digests.insert(token.sha256, index) {
            let complaint = Complaint::new(format!("the token of `tokens[{first}]` again"));
            r.complain(item.at, &path.key("sha256"), complaint.allowed("each token once"));
        }
        found.push(token);
    }
    Some(found)
}

fn token(r: &mut Reader, node: &Node, here: &Path<'_>) -> Option<TokenEntry> {
    let roles = Role::ALL.map(|role| (role.as_str(), role));
    let fields = r.fields(node, here, &["name", "role", "sha256"])?;
    let name = r.required(&fields, here, "name", NAME_ALLOWED).and_then(|node| r.name(node, &here.key("name")));
    let role = r.required(&fields, here, "role", "`viewer`, `operator`, `admin`");
    let role = role.and_then(|node| r.one_of(node, &here.key("role"), &roles));
    let sha256 = r.required(&fields, here, "sha256", DIGEST_ALLOWED);
    let sha256 = sha256.and_then(|node| digest(r, node, &here.key("sha256")));
    Some(TokenEntry { name: name?, role: role?, sha256: sha256? })
}

/// What stands there may be a token that somebody put in the wrong place, so no problem shows it.
fn digest(r: &mut Reader, node: &Node, here: &Path<'_>) -> Option<[u8; 32]> {
    let found = match &node.kind {
        Kind::Text(text) => match bytes(text) {
            Some(bytes) => return Some(bytes),
            None => format!("text of {} characters", text.chars().count()),
        },
        Kind::Null => "nothing".to_owned(),
        Kind::Bool(_) | Kind::Number(_) | Kind::List(_) | Kind::Map(_) => "no text".to_owned(),
    };
    let hint = "`stepfleet tokens create` writes the line; the token itself does not belong here".to_owned();
    r.complain(node.at, here, Complaint::new(found).allowed(DIGEST_ALLOWED).hint(Some(hint)));
    None
}

fn bytes(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::check_tokens;
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        check_tokens(text).expect_err("something is wrong").problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tokens_are_read_and_a_name_may_have_two() {
        let (one, two) = ("ab".repeat(32), "CD".repeat(32));
        let text = format!(
            "# who may do what\ntokens:\n  - {{ name: ann, role: operator, sha256: {one} }}\n  - name: ann\n    \
             role: operator\n    sha256: \"{two}\"\n"
        );
        let name = Name::new("ann").expect("a legal name");
        let token = |byte| TokenEntry { name: name.clone(), role: Role::Operator, sha256: [byte; 32] };
        assert_eq!(check_tokens(&text), Ok(vec![token(0xab), token(0xcd)]));
    }

    #[test]
    fn every_problem_is_named_with_its_place() {
        let good = "ab".repeat(32);
        let text = format!(
            "tokens:\n  - {{ name: ann, role: operater, sha256: {good} }}\n  - {{ name: a b, role: admin, sha256: {good} }}\n  \
             - {{ name: bob, sha256: {good} }}\n  - {{ name: bob, role: admin, sha256: {good}, token: x }}\n"
        );
        let found = problems(&text);
        let starts = [
            "2:24 tokens[0].role: found text `operater`: allowed is `viewer`, `operator`, `admin`; hint: ",
            "3:13 tokens[1].name: illegal name `a b`",
            "4:5 tokens[2]: missing field `role`",
            "5:91 tokens[3].token: unknown field `token`",
        ];
        assert_eq!(found.len(), starts.len(), "{found:#?}");
        for (found, start) in found.iter().zip(starts) {
            let place = |text: &str| text.split_once(' ').map(|(place, text)| (place.to_owned(), text.to_owned()));
            let (found, start) = (place(found).expect("a place"), place(start).expect("a place"));
            assert_eq!(found.0.split(':').next(), start.0.split(':').next(), "{found:?}");
            assert!(found.1.starts_with(&start.1), "{found:?}");
        }
    }

    #[test]
    fn a_name_with_two_roles_and_a_token_for_two_names_are_problems() {
        let (one, two) = ("ab".repeat(32), "cd".repeat(32));
        let line =
            |name: &str, role: &str, digest: &str| format!("- {{name: {name}, role: {role}, sha256: {digest}}}\n");
        let two_roles = format!("tokens:\n{}{}", line("ann", "viewer", &one), line("ann", "admin", &two));
        assert!(problems(&two_roles)[0].contains("tokens[1].role: `ann` is `viewer` further up"));
        let one_token = format!("tokens:\n{}{}", line("ann", "viewer", &one), line("bob", "viewer", &one));
        assert!(problems(&one_token)[0].contains("tokens[1].sha256: the token of `tokens[0]` again"));
    }

    #[test]
    fn a_token_in_place_of_its_hash_is_not_shown() {
        let found = problems("tokens: [{ name: ann, role: admin, sha256: sf_secret-of-ann-0123456789 }]");
        assert!(found[0].contains("text of 27 characters") && !found[0].contains("secret"), "{found:?}");
    }

    #[test]
    fn a_file_without_tokens_is_a_problem() {
        for text in ["", "# nothing yet\n", "tokens:\n", "tokens: []", "tokens: { ann: x }", "[]", "tokens: [1"] {
            assert_eq!(problems(text).len(), 1, "{text}");
        }
    }

    #[test]
    fn roles_are_ordered_and_read_as_they_are_written() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err_and(|why| why.contains("`root`") && why.contains("`admin`")));
    }
}
