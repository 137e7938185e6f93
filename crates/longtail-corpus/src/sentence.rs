//! Sentences and the words in them, as byte ranges of a document.

use std::{borrow::Cow, ops::Range};

use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

/// Where sentences end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SentenceRule {
    /// Unicode sentence boundaries (UAX #29), with a single line end read as a space: text wrapped at a column stays whole. Abbreviations
    /// before a capital (`Mr. Smith`) end a sentence, as the rules have it.
    #[default]
    Unicode,
    /// Each document is one sentence.
    Document,
}

impl SentenceRule {
    /// Byte ranges of the sentences, in order, without gaps.
    pub(crate) fn ranges(self, text: &str) -> Vec<Range<usize>> {
        match self {
            Self::Document => std::iter::once(0..text.len()).collect(),
            Self::Unicode => {
                let unwrapped = unwrap_lines(text);
                unwrapped
                    .split_sentence_bound_indices()
                    .map(|(start, sentence)| start..start + sentence.len())
                    .collect()
            }
        }
    }
}

/// The text with every single line end as spaces: the same length, so that offsets hold.
fn unwrap_lines(text: &str) -> Cow<'_, str> {
    if !text.contains('\n') {
        return Cow::Borrowed(text);
    }
    let mut unwrapped = String::with_capacity(text.len());
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let body = line.trim_end_matches(['\r', '\n']);
        let blank = body.trim().is_empty();
        let blank_after = lines.peek().is_none_or(|next| next.trim().is_empty());
        unwrapped.push_str(body);
        let end = &line[body.len()..];
        if blank || blank_after {
            unwrapped.push_str(end);
        } else {
            unwrapped.extend(end.chars().map(|_| ' '));
        }
    }
    Cow::Owned(unwrapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let ranges = SentenceRule::Unicode.ranges(text);
        let sentences: Vec<&str> = ranges.iter().map(|range| &text[range.clone()]).collect();
        assert_eq!(sentences, expected);
    }

    #[test]
    fn sentences_end_where_unicode_says() {
        check(
            "Call me Ishmael. Some years ago? Yes!",
            &["Call me Ishmael. ", "Some years ago? ", "Yes!"],
        );
        check(
            "a line\nwrapped here. Next\r\none.",
            &["a line\nwrapped here. ", "Next\r\none."],
        );
        check("A title\n\nThe text.", &["A title\n", "\n", "The text."]);
        check("", &[]);
    }
}
