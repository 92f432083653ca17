//! What the checker has to say: every problem at once, each with its place.

use std::fmt;

use serde::Serialize;

use super::tree::Pos;

/// Problems that a report names; further ones are only counted.
pub const PROBLEMS_MAX: usize = 100;

/// One thing that is wrong with a definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Line in the text, from 1. None if the definition did not come as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column in the line in characters, from 1. None if the definition did not come as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// Where in the definition: `steps.fetch.timeout`. Empty for the definition as a whole.
    pub path: String,
    /// What was found: bad duration `5x`.
    pub found: String,
    /// What is allowed there instead. Empty if that is plain from what was found.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub allowed: String,
    /// A guess at what was meant, or what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column} ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.found)?;
        if !self.allowed.is_empty() {
            write!(f, ": allowed is {}", self.allowed)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

/// All problems of one definition in the order of the text. Never empty when it is returned as an error.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, thiserror::Error)]
pub struct Report {
    /// The first [`PROBLEMS_MAX`] problems that were met.
    pub problems: Vec<Problem>,
    /// How many more there were.
    pub omitted: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl Report {
    /// Adds a problem, or counts it when the report is full.
    pub(super) fn add(&mut self, at: Option<Pos>, path: String, complaint: Complaint) {
        if self.is_full() {
            self.omitted += 1;
            return;
        }
        let Complaint { found, allowed, hint } = complaint;
        let (line, column) = (at.map(|p| p.line), at.map(|p| p.column));
        self.problems.push(Problem { line, column, path, found, allowed, hint });
    }

    /// Whether further problems are only counted, so that hints for them are not worth their time.
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() >= PROBLEMS_MAX
    }

    /// In the order of the text; the rules meet the problems in the order of the format instead.
    pub(super) fn sorted(mut self) -> Self {
        self.problems.sort_by_key(|p| (p.line, p.column));
        self
    }
}

/// A problem without its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Complaint {
    found: String,
    allowed: String,
    hint: Option<String>,
}

impl Complaint {
    pub(super) fn new(found: impl Into<String>) -> Self {
        Self { found: found.into(), allowed: String::new(), hint: None }
    }

    pub(super) fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = allowed.into();
        self
    }

    pub(super) fn hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

/// `text` as it may stand in a report: one line, at most 60 characters.
pub(super) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(60).is_some() {
        out.push('…');
    }
    out
}
