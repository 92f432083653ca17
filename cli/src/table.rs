//! Tables for people: no borders, a heading, the last column takes what is left of the line.

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table};

use crate::failure::Failure;
use crate::out::{Ink, Out, plain};

/// A table that grows by rows.
#[derive(Debug)]
pub(crate) struct Rows {
    table: Table,
    columns: usize,
}

/// A cell: text and ink.
#[derive(Debug, Clone)]
pub(crate) struct Word(String, Ink);

impl Word {
    /// A word in its ink. What others wrote is made harmless.
    pub(crate) fn new(text: impl AsRef<str>, ink: Ink) -> Self {
        Self(plain(text.as_ref()), ink)
    }
}

impl<T: AsRef<str>> From<T> for Word {
    fn from(text: T) -> Self {
        Self::new(text, Ink::Plain)
    }
}

impl Rows {
    /// With these headings.
    pub(crate) fn new(out: &Out, headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if !out.has_color() {
            table.force_no_tty();
        }
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(headings.iter().map(|heading| Cell::new(heading).add_attribute(Attribute::Bold)));
        Self { table, columns: headings.len() }
    }

    /// One more row, with as many words as there are headings.
    pub(crate) fn row(&mut self, words: Vec<Word>) {
        debug_assert_eq!(words.len(), self.columns, "a row has a word for each heading");
        self.table.add_row(words.into_iter().map(|Word(text, ink)| {
            let cell = Cell::new(text);
            match ink {
                Ink::Good => cell.fg(Color::Green),
                Ink::Busy => cell.fg(Color::Cyan),
                Ink::Warn => cell.fg(Color::Yellow),
                Ink::Bad => cell.fg(Color::Red),
                Ink::Dim => cell.add_attribute(Attribute::Dim),
                Ink::Bold => cell.add_attribute(Attribute::Bold),
                Ink::Plain => cell,
            }
        }));
    }

    /// Whether there are no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Writes the table to stdout.
    ///
    /// # Errors
    /// stdout is closed or broken.
    pub(crate) fn print(mut self, out: &Out) -> Result<(), Failure> {
        let last = self.columns - 1;
        for (index, column) in self.table.column_iter_mut().enumerate() {
            column.set_padding((0, if index == last { 0 } else { 2 }));
            if index != last {
                // Ids must stay whole, so that they can be copied.
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        for line in self.table.lines() {
            out.line(line.trim_end())?;
        }
        Ok(())
    }
}

/// The names and values of one thing, aligned, a line each.
///
/// # Errors
/// stdout is closed or broken.
pub(crate) fn pairs(out: &Out, pairs: &[(&str, String)]) -> Result<(), Failure> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        out.line(&format!("{}{} {value}", out.ink(name, Ink::Dim), " ".repeat(width - name.len() + 1)))?;
    }
    Ok(())
}
