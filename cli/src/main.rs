//! The one program.

#[cfg(test)]
mod wfformat;

fn main() {}
