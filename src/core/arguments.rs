//! A cursor over a command's arguments.

use crate::error::{shown, Error, Result};

/// The arguments that are left, in order.
#[derive(Debug, Clone)]
pub struct Arguments<'a> {
    items: &'a [&'a [u8]],
}

impl<'a> Arguments<'a> {
    /// A cursor at the first of `items`.
    pub fn new(items: &'a [&'a [u8]]) -> Self {
        Arguments { items }
    }

    /// The next argument; `what` names it if it is missing.
    pub fn next(&mut self, what: &str) -> Result<&'a [u8]> {
        let (first, rest) =
            self.items.split_first().ok_or_else(|| Error::syntax(format!("{what} is missing at the end")))?;
        self.items = rest;
        Ok(first)
    }

    /// The next argument, left in place.
    pub fn peek(&self) -> Option<&'a [u8]> {
        self.items.first().copied()
    }

    /// The argument after the next, left in place.
    pub fn peek_second(&self) -> Option<&'a [u8]> {
        self.items.get(1).copied()
    }

    /// Takes the next argument if it is this word, in any case.
    pub fn take_word(&mut self, word: &str) -> bool {
        match self.items.split_first() {
            Some((first, rest)) if first.eq_ignore_ascii_case(word.as_bytes()) => {
                self.items = rest;
                true
            }
            _ => false,
        }
    }

    /// The next argument as one of `words`, in any case; answers which.
    pub fn one_of(&mut self, what: &str, words: &[&str]) -> Result<usize> {
        let given = self.next(what)?;
        words
            .iter()
            .position(|w| given.eq_ignore_ascii_case(w.as_bytes()))
            .ok_or_else(|| Error::syntax(format!("{what} must be {}, got '{}'", words.join(" or "), shown(given))))
    }

    /// The next argument as a whole number of at least `min`.
    pub fn number(&mut self, what: &str, min: u64) -> Result<u64> {
        let given = self.next(what)?;
        parse_number(what, given, min)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [&'a [u8]] {
        std::mem::take(&mut self.items)
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True when none is left.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// An error if anything is left.
    pub fn finish(&self) -> Result<()> {
        match self.peek() {
            None => Ok(()),
            Some(extra) => Err(Error::syntax(format!("unexpected argument '{}'", shown(extra)))),
        }
    }
}

/// A whole number of at least `min`.
pub fn parse_number(what: &str, text: &[u8], min: u64) -> Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .filter(|t| t.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|t| t.parse().ok())
        .filter(|n| *n >= min)
        .ok_or_else(|| Error::syntax(format!("{what} must be a whole number of at least {min}, got '{}'", shown(text))))
}

/// A view's version: 1 to 999999999.
pub fn parse_version(text: &[u8]) -> Result<u32> {
    let version = parse_number("VERSION", text, 1)?;
    u32::try_from(version)
        .ok()
        .filter(|v| *v <= 999_999_999)
        .ok_or_else(|| Error::syntax(format!("VERSION must be at most 999999999, got {version}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_match_in_any_case_and_the_rest_is_reported() {
        let items: &[&[u8]] = &[b"Version", b"2", b"x"];
        let mut arguments = Arguments::new(items);
        assert!(arguments.take_word("VERSION"));
        assert_eq!(arguments.number("VERSION", 1), Ok(2));
        assert!(arguments.finish().expect_err("x is left").message.contains("'x'"));
        assert_eq!(arguments.next("view"), Ok(&b"x"[..]));
        assert!(arguments.next("view").is_err());
        for bad in ["0", "-1", "+1", "1.5", "", "99999999999999999999"] {
            assert!(parse_number("n", bad.as_bytes(), 1).is_err(), "{bad}");
        }
    }
}
