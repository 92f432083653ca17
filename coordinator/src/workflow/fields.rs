//! Reading typed fields from a tree: each reader complains about what it cannot read and goes on.

use std::{collections::HashSet, fmt, ops::RangeInclusive};

use serde_json::Value;
use stepfleet_protocol::{duration::Millis, name::Name};

use super::{
    report::{Complaint, Report, shown},
    suggest::did_you_mean,
    tree::{Entry, Kind, Node, Pos},
};

/// What a name may look like, as a report says it.
pub(super) const NAME_ALLOWED: &str = "1 to 63 letters, digits, `_`, `-`, `.`, the first a letter or a digit";
const DURATION_ALLOWED: &str =
    "a number with a unit `ms`, `s`, `m`, `h` or `d`, such as `30s` or `1h30m`, at most 3650d";

/// Where the walk is, as a chain up to the root; made text only for a problem.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy)]
enum Segment<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    pub(super) const ROOT: Path<'static> = Path { parent: None, segment: Segment::Root };

    pub(super) fn key(&'a self, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), segment: Segment::Key(key) }
    }

    pub(super) fn item(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), segment: Segment::Index(index) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        let first = self.parent.is_none_or(|p| matches!(p.segment, Segment::Root));
        let plain = |k: &str| !k.is_empty() && k.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        match self.segment {
            Segment::Root => Ok(()),
            Segment::Key(k) if !plain(k) => write!(f, "[\"{}\"]", shown(k)),
            Segment::Key(k) if first => f.write_str(k),
            Segment::Key(k) => write!(f, ".{k}"),
            Segment::Index(i) => write!(f, "[{i}]"),
        }
    }
}

/// The problems so far.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) report: Report,
}

/// The known fields of a map.
pub(super) struct Fields<'n> {
    at: Option<Pos>,
    found: Vec<(&'static str, &'n Entry)>,
}

impl<'n> Fields<'n> {
    /// The field, if it is there.
    pub(super) fn get(&self, name: &'static str) -> Option<&'n Node> {
        self.found.iter().find(|(known, _)| *known == name).map(|(_, entry)| &entry.value)
    }

    /// The field, if it is there and not null.
    pub(super) fn set(&self, name: &'static str) -> Option<&'n Node> {
        self.get(name).filter(|node| !matches!(node.kind, Kind::Null))
    }
}

impl Reader {
    pub(super) fn complain(&mut self, at: Option<Pos>, path: &Path<'_>, complaint: Complaint) {
        self.report.add(at, path.to_string(), complaint);
    }

    pub(super) fn wrong_type(&mut self, node: &Node, path: &Path<'_>, allowed: &str) {
        self.complain(node.at, path, Complaint::new(format!("found {}", node.describe())).allowed(allowed));
    }

    /// The entries of a map, each key once.
    pub(super) fn entries<'n>(&mut self, node: &'n Node, path: &Path<'_>, allowed: &str) -> Option<Vec<&'n Entry>> {
        let Kind::Map(entries) = &node.kind else {
            self.wrong_type(node, path, allowed);
            return None;
        };
        let mut seen = HashSet::with_capacity(entries.len());
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            if seen.insert(entry.key.as_str()) {
                kept.push(entry);
            } else {
                let found = format!("duplicate key `{}`", shown(&entry.key));
                self.complain(entry.at, &path.key(&entry.key), Complaint::new(found).allowed("each key once"));
            }
        }
        Some(kept)
    }

    /// The fields of a map in which only `known` ones may be.
    pub(super) fn fields<'n>(&mut self, node: &'n Node, path: &Path<'_>, known: &[&'static str]) -> Option<Fields<'n>> {
        if !matches!(node.kind, Kind::Map(_)) {
            // Made only here: a large definition has a hundred thousand maps that are right.
            self.wrong_type(node, path, &format!("a map with {}", list(known)));
            return None;
        }
        let mut found = Vec::new();
        for entry in self.entries(node, path, "a map")? {
            match known.iter().find(|k| **k == entry.key) {
                Some(name) => found.push((*name, entry)),
                None => {
                    let hint = did_you_mean(&entry.key, known.iter().copied());
                    let complaint = Complaint::new(format!("unknown field `{}`", shown(&entry.key)));
                    self.complain(entry.at, &path.key(&entry.key), complaint.allowed(list(known)).hint(hint));
                }
            }
        }
        Some(Fields { at: node.at, found })
    }

    /// A field that must be there.
    pub(super) fn required<'n>(
        &mut self,
        fields: &Fields<'n>,
        path: &Path<'_>,
        name: &'static str,
        allowed: &str,
    ) -> Option<&'n Node> {
        let node = fields.get(name);
        if node.is_none() {
            self.complain(fields.at, path, Complaint::new(format!("missing field `{name}`")).allowed(allowed));
        }
        node
    }

    pub(super) fn text<'n>(&mut self, node: &'n Node, path: &Path<'_>) -> Option<&'n str> {
        match &node.kind {
            Kind::Text(text) => Some(text),
            _ => {
                self.wrong_type(node, path, "text");
                None
            }
        }
    }

    pub(super) fn name(&mut self, node: &Node, path: &Path<'_>) -> Option<Name> {
        match &node.kind {
            Kind::Text(text) => self.checked_name(text, node.at, path),
            Kind::Number(_) | Kind::Bool(_) => {
                let complaint = Complaint::new(format!("found {}", node.describe())).allowed("a name");
                self.complain(node.at, path, complaint.hint(Some("put it in quotes".to_owned())));
                None
            }
            Kind::Null | Kind::List(_) | Kind::Map(_) => {
                self.wrong_type(node, path, "a name");
                None
            }
        }
    }

    pub(super) fn checked_name(&mut self, text: &str, at: Option<Pos>, path: &Path<'_>) -> Option<Name> {
        let name = Name::new(text);
        if name.is_err() {
            let found = format!("illegal name `{}`", shown(text));
            self.complain(at, path, Complaint::new(found).allowed(NAME_ALLOWED));
        }
        name.ok()
    }

    pub(super) fn duration(&mut self, node: &Node, path: &Path<'_>) -> Option<Millis> {
        match &node.kind {
            Kind::Text(text) => {
                let span = Millis::parse(text).ok();
                // What the schema's pattern refuses is refused here too: spaces around.
                let span = span.filter(|_| text.trim().len() == text.len());
                if span.is_none() {
                    let found = format!("bad duration `{}`", shown(text));
                    self.complain(node.at, path, Complaint::new(found).allowed(DURATION_ALLOWED));
                }
                span
            }
            Kind::Number(n) if n.as_u64() == Some(0) => Some(Millis(0)),
            Kind::Number(n) => {
                let hint = format!("for seconds write `{n}s`");
                let complaint = Complaint::new(format!("found {}", node.describe())).allowed(DURATION_ALLOWED);
                self.complain(node.at, path, complaint.hint(Some(hint)));
                None
            }
            Kind::Null | Kind::Bool(_) | Kind::List(_) | Kind::Map(_) => {
                self.wrong_type(node, path, DURATION_ALLOWED);
                None
            }
        }
    }

    /// A duration that would make no sense as nothing. A time-out is none of those: 0 switches it off.
    pub(super) fn time_limit(&mut self, node: &Node, path: &Path<'_>) -> Option<Millis> {
        let span = self.duration(node, path)?;
        if span.0 == 0 {
            self.complain(node.at, path, Complaint::new("bad duration `0`").allowed("at least 1ms"));
            return None;
        }
        Some(span)
    }

    pub(super) fn whole_number(&mut self, node: &Node, path: &Path<'_>, range: RangeInclusive<u64>) -> Option<u64> {
        let allowed = || format!("a whole number from {} to {}", range.start(), range.end());
        let Kind::Number(n) = &node.kind else {
            self.wrong_type(node, path, &allowed());
            return None;
        };
        let number = n.as_u64().filter(|n| range.contains(n));
        if number.is_none() {
            self.complain(node.at, path, Complaint::new(format!("number `{n}` out of range")).allowed(allowed()));
        }
        number
    }

    pub(super) fn number(&mut self, node: &Node, path: &Path<'_>, range: RangeInclusive<f64>) -> Option<f64> {
        let allowed = || format!("a number from {} to {}", range.start(), range.end());
        let Kind::Number(n) = &node.kind else {
            self.wrong_type(node, path, &allowed());
            return None;
        };
        let number = n.as_f64().filter(|n| range.contains(n));
        if number.is_none() {
            self.complain(node.at, path, Complaint::new(format!("number `{n}` out of range")).allowed(allowed()));
        }
        number
    }

    pub(super) fn one_of<T: Copy>(&mut self, node: &Node, path: &Path<'_>, words: &[(&'static str, T)]) -> Option<T> {
        let known: Vec<&'static str> = words.iter().map(|(word, _)| *word).collect();
        let Kind::Text(text) = &node.kind else {
            self.wrong_type(node, path, &list(&known));
            return None;
        };
        let word = words.iter().find(|(word, _)| word == text).map(|(_, value)| *value);
        if word.is_none() {
            let hint = did_you_mean(text, known.iter().copied());
            let complaint = Complaint::new(format!("found text `{}`", shown(text)));
            self.complain(node.at, path, complaint.allowed(list(&known)).hint(hint));
        }
        word
    }

    /// Any value, with a look at each of its texts.
    pub(super) fn value<'n>(
        &mut self,
        node: &'n Node,
        path: &Path<'_>,
        look: &mut impl FnMut(&mut Self, &'n str, Option<Pos>, &Path<'_>),
    ) -> Value {
        match &node.kind {
            Kind::Null => Value::Null,
            Kind::Bool(b) => Value::Bool(*b),
            Kind::Number(n) => Value::Number(n.clone()),
            Kind::Text(text) => {
                look(self, text, node.at, path);
                Value::String(text.clone())
            }
            Kind::List(items) => {
                items.iter().enumerate().map(|(i, item)| self.value(item, &path.item(i), look)).collect()
            }
            Kind::Map(_) => {
                let entries = self.entries(node, path, "a map").unwrap_or_default();
                let pair = |e: &&'n Entry| (e.key.clone(), self.value(&e.value, &path.key(&e.key), look));
                Value::Object(entries.iter().map(pair).collect())
            }
        }
    }
}

fn list(words: &[&str]) -> String {
    words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ")
}
