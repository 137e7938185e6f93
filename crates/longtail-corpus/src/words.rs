//! From the tokens of a band to words.

use std::collections::{BTreeMap, HashMap, HashSet};

use model_conventions::{WordPieces, word_pieces::pieces_in_text};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;
use unicode_segmentation::UnicodeSegmentation;

use crate::{
    Band, CorpusError, Document, Frequencies, Lexicon, TokenizeError, batch::Batches, pack::plain,
};

/// What to do with upper case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CasePolicy {
    /// Words as they are spelled: `Whale` and `whale` are two.
    #[default]
    Keep,
    /// Spellings are merged under the lower-case one: their counts are added up, and the band is tested on the sum.
    Lower,
    /// Only words without upper case: no names, no sentence starts.
    LowerOnly,
}

/// Which words to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WordOptions {
    /// Fewest letters.
    pub min_length: usize,
    /// What to do with upper case.
    pub case: CasePolicy,
    /// How many words of the band to take, evenly spread over their ranks; all of them by default.
    pub rare: Option<usize>,
    /// How many words that are more frequent than the band to take as well, evenly spread over their ranks.
    pub common: usize,
}

impl WordOptions {
    /// With another [`min_length`](Self::min_length).
    #[must_use]
    pub fn with_min_length(self, min_length: usize) -> Self {
        Self { min_length, ..self }
    }

    /// With another [`case`](Self::case).
    #[must_use]
    pub fn with_case(self, case: CasePolicy) -> Self {
        Self { case, ..self }
    }

    /// With another [`rare`](Self::rare).
    #[must_use]
    pub fn with_rare(self, rare: impl Into<Option<usize>>) -> Self {
        let rare = rare.into();
        Self { rare, ..self }
    }

    /// With another [`common`](Self::common).
    #[must_use]
    pub fn with_common(self, common: usize) -> Self {
        Self { common, ..self }
    }
}

impl Default for WordOptions {
    /// Three letters or more, as spelled; all of the band and none above it.
    fn default() -> Self {
        Self {
            min_length: 3,
            case: CasePolicy::default(),
            rare: None,
            common: 0,
        }
    }
}

/// How often each word occurs in a corpus; a word is a Unicode word (UAX #29) of letters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WordCounts {
    counts: HashMap<String, u64>,
    total: u64,
    /// The spellings of each word that has others than its own.
    spellings: HashMap<String, Vec<String>>,
}

impl WordCounts {
    /// Counts the words of a corpus.
    ///
    /// Memory grows with the number of distinct words.
    ///
    /// # Errors
    /// - [`CorpusError`] if a document cannot be read
    pub fn count(
        documents: impl Iterator<Item = Result<Document, CorpusError>> + Send,
    ) -> Result<Self, CorpusError> {
        Batches::new(documents)
            .par_bridge()
            .try_fold(Self::default, |mut counts, batch| {
                for document in batch? {
                    for word in document
                        .text
                        .unicode_words()
                        .filter(|word| is_letters(word))
                    {
                        counts.add(word, 1);
                    }
                }
                Ok(counts)
            })
            .try_reduce(Self::default, |mut a, mut b| {
                if a.counts.len() < b.counts.len() {
                    std::mem::swap(&mut a, &mut b);
                }
                b.counts
                    .iter()
                    .for_each(|(word, &times)| a.add(word, times));
                Ok(a)
            })
    }

    fn add(&mut self, word: &str, times: u64) {
        self.total += times;
        match self.counts.get_mut(word) {
            Some(count) => *count += times,
            None => {
                self.counts.insert(word.into(), times);
            }
        }
    }

    /// The same words with their spellings added up under the lower-case one.
    fn lower_case(&self) -> Self {
        let mut folded = Self::default();
        for (word, &times) in &self.counts {
            let lower = word.to_lowercase();
            folded.add(&lower, times);
            folded
                .spellings
                .entry(lower)
                .or_default()
                .push(word.clone());
        }
        folded
    }

    /// How a word is spelled in the corpus.
    fn spellings_of<'w>(&'w self, word: &'w String) -> &'w [String] {
        self.spellings
            .get(word)
            .map_or(std::slice::from_ref(word), Vec::as_slice)
    }

    /// Occurrences of a word as spelled.
    pub fn get(&self, word: &str) -> u64 {
        self.counts.get(word).copied().unwrap_or(0)
    }

    /// Occurrences of all words.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Distinct words.
    pub fn distinct(&self) -> usize {
        self.counts.len()
    }

    /// `(c + 1) / (total + distinct)`: as smoothed as token frequencies are.
    fn frequency(&self, count: u64) -> f64 {
        (count + 1) as f64 / (self.total + self.counts.len() as u64).max(1) as f64
    }
}

/// A rare word, or a common one to compare with.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LongTailWord {
    /// The word.
    pub word: String,
    /// Its pieces after a space, in order; one for a word that is a token.
    pub token_ids: Vec<u32>,
    /// Occurrences: of the word where a corpus was counted, else of its token.
    pub count: u64,
    /// Occurrences per million, from the smoothed frequency.
    pub per_million: f64,
    /// Zipf scale: log10 of the occurrences per billion.
    pub zipf: f64,
    /// Whether it is a word of the band; else it is above it.
    pub in_band: bool,
}

/// Candidates that are no words, by the first test they fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct LeftOut {
    /// Pieces that begin no word: continuations, punctuation, special tokens.
    pub not_word_initial: usize,
    /// Not of letters only.
    pub not_letters: usize,
    /// Fewer letters than asked for.
    pub too_short: usize,
    /// With upper case, where only lower case was asked for.
    pub upper_case: usize,
    /// Pieces that the tokenizer does not give for their own text.
    pub not_whole: usize,
    /// Not in the lexicon.
    pub not_in_lexicon: usize,
    /// Further spellings that were merged into one word.
    pub merged: usize,
    /// In the band as spelled, but not together with the other spellings of the word (` THAT` is rare, `that` is not).
    pub with_other_spellings_outside_band: usize,
}

/// The words of a band.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LongTailWords {
    /// From the rarest on, words of one frequency in alphabetical order; those of the band first.
    pub words: Vec<LongTailWord>,
    /// How many words of the band there are, of which [`WordOptions::rare`] takes some.
    pub rare: usize,
    /// Tokens of the band, and words of several pieces in the band, that were looked at.
    pub candidates: usize,
    /// Why the others are none.
    pub left_out: LeftOut,
}

/// Finds the words of a band.
///
/// A token is a word if it begins one (see [`WordPieces`]), is all letters, is long enough, is what the tokenizer makes of a space and that word, and is
/// in the lexicon. With the word counts of a corpus, words of several pieces join it whose own frequency lies between the band's bounds,
/// and all counts are of words, not of tokens.
///
/// With [`CasePolicy::Lower`] the frequencies of all spellings of a word are added up before they are compared with the bounds: those of its
/// tokens, or, for a word none of whose spellings is a token, those of its spellings in the corpus. A word is admitted if one of its
/// spellings is.
///
/// With [`WordOptions::common`], words join them that are more frequent than the band: by the counts of the corpus where there is one, else by
/// their tokens.
///
/// # Errors
/// - [`TokenizeError::Encode`] if the tokenizer fails on a word
pub fn long_tail_words(
    band: &Band,
    frequencies: &Frequencies,
    tokenizer: &Tokenizer,
    pieces: &WordPieces,
    lexicon: Option<&Lexicon>,
    corpus: Option<&WordCounts>,
    options: WordOptions,
) -> Result<LongTailWords, TokenizeError> {
    let tokenizer = plain(tokenizer)?;
    let encode = |word: &str| {
        pieces_in_text(&tokenizer, word)
            .map_err(|source| TokenizeError::Encode { index: 0, source })
    };
    let spelling = |word: &str| match options.case {
        CasePolicy::Lower => word.to_lowercase(),
        CasePolicy::Keep | CasePolicy::LowerOnly => word.to_owned(),
    };
    let inside = |frequency: f64| (band.min_frequency..=band.max_frequency).contains(&frequency);
    let folded;
    let corpus = match corpus {
        Some(counts) if options.case == CasePolicy::Lower => {
            folded = counts.lower_case();
            Some(&folded)
        }
        counts => counts,
    };
    let in_band: HashSet<u32> = band.ids.iter().copied().collect();
    let mut left_out = LeftOut::default();
    let mut candidates = 0;
    // The tokens of each word: one, or one for each spelling that counts as the same word.
    let mut tokens: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for id in (0u32..).take(frequencies.q().len()) {
        if let Some(word) = pieces.word(id) {
            tokens.entry(spelling(word)).or_default().push(id);
        } else if in_band.contains(&id) {
            candidates += 1;
            left_out.not_word_initial += 1;
        }
    }
    // Words of the band, and those above it.
    let mut found: Vec<(String, Vec<u32>, u64, f64)> = Vec::new();
    let mut above: Vec<(String, Vec<u32>, u64, f64)> = Vec::new();
    for (word, ids) in &tokens {
        let sum = ids.iter().map(|&id| frequencies.q()[id as usize]).sum();
        let is_rare = match ids.as_slice() {
            [id] => in_band.contains(id),
            _ => inside(sum),
        };
        let (count, frequency) = match corpus {
            Some(counts) => (counts.get(word), counts.frequency(counts.get(word))),
            None => (
                ids.iter()
                    .map(|&id| frequencies.counts()[id as usize])
                    .sum(),
                sum,
            ),
        };
        // Why words above the band are none is not counted: they are no candidates.
        let mut uncounted = LeftOut::default();
        let reasons = if is_rare {
            candidates += ids.len();
            &mut left_out
        } else {
            let spellings = ids.iter().filter(|&id| in_band.contains(id)).count();
            candidates += spellings;
            left_out.with_other_spellings_outside_band += spellings;
            if options.common == 0 || frequency <= band.max_frequency {
                continue;
            }
            &mut uncounted
        };
        let mut admitted = 0;
        for &id in ids {
            let Some(as_spelled) = pieces.word(id) else {
                continue;
            };
            if !reasons.admits(as_spelled, lexicon, options) {
                continue;
            }
            if encode(as_spelled)? == [id] {
                admitted += 1;
            } else {
                reasons.not_whole += 1;
            }
        }
        if admitted == 0 {
            continue;
        }
        reasons.merged += admitted - 1;
        let pieces = match ids.as_slice() {
            [id] if options.case != CasePolicy::Lower => vec![*id],
            _ => encode(word)?,
        };
        let list = if is_rare { &mut found } else { &mut above };
        list.push((word.clone(), pieces, count, frequency));
    }
    if let Some(counts) = corpus {
        for (word, &count) in &counts.counts {
            let frequency = counts.frequency(count);
            let is_rare = inside(frequency);
            let is_common = options.common > 0 && frequency > band.max_frequency;
            if !(is_rare || is_common) || tokens.contains_key(word) {
                continue; // a token: the band has decided
            }
            let ids = encode(word)?;
            if ids.len() < 2 {
                continue;
            }
            let mut uncounted = LeftOut::default();
            let spellings = counts.spellings_of(word);
            let (reasons, list) = if is_rare {
                candidates += spellings.len();
                (&mut left_out, &mut found)
            } else {
                (&mut uncounted, &mut above)
            };
            let mut admitted = 0;
            for as_spelled in spellings {
                admitted += usize::from(reasons.admits(as_spelled, lexicon, options));
            }
            if admitted > 0 {
                reasons.merged += admitted - 1;
                list.push((word.clone(), ids, count, frequency));
            }
        }
    }
    let from_the_rarest = |words: &mut Vec<(String, Vec<u32>, u64, f64)>| {
        words.sort_unstable_by(|a, b| a.3.total_cmp(&b.3).then_with(|| a.0.cmp(&b.0)));
    };
    from_the_rarest(&mut found);
    from_the_rarest(&mut above);
    let spread = |words: &[(String, Vec<u32>, u64, f64)], most: usize| -> Vec<_> {
        let n = most.min(words.len());
        let places = (0..n).map(|i| i * words.len() / n);
        places.map(|place| words[place].clone()).collect()
    };
    let rare = spread(&found, options.rare.unwrap_or(found.len()));
    let common = spread(&above, options.common);
    let words = rare
        .into_iter()
        .map(|word| (word, true))
        .chain(common.into_iter().map(|word| (word, false)))
        .map(
            |((word, token_ids, count, frequency), in_band)| LongTailWord {
                word,
                token_ids,
                count,
                per_million: frequency * 1e6,
                zipf: (frequency * 1e9).log10(),
                in_band,
            },
        )
        .collect();
    Ok(LongTailWords {
        words,
        rare: found.len(),
        candidates,
        left_out,
    })
}

impl LeftOut {
    /// Whether a string is a word; if not, the reason is counted.
    fn admits(&mut self, word: &str, lexicon: Option<&Lexicon>, options: WordOptions) -> bool {
        let reason = if !is_letters(word) {
            &mut self.not_letters
        } else if word.chars().count() < options.min_length {
            &mut self.too_short
        } else if options.case == CasePolicy::LowerOnly && word.chars().any(char::is_uppercase) {
            &mut self.upper_case
        } else if lexicon.is_some_and(|lexicon| !lexicon.contains(word)) {
            &mut self.not_in_lexicon
        } else {
            return true;
        };
        *reason += 1;
        false
    }
}

/// Letters throughout, with marks on them or an apostrophe or hyphen between them.
fn is_letters(word: &str) -> bool {
    let joins = |c: char| matches!(c, '\'' | '\u{2019}' | '-') || unicode_mark(c);
    word.starts_with(char::is_alphabetic)
        && word.chars().all(|c| c.is_alphabetic() || joins(c))
        && !word.ends_with(['\'', '\u{2019}', '-'])
}

/// Combining marks of the common blocks; letters carry them in decomposed text.
fn unicode_mark(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_letters() {
        for word in [
            "whale",
            "Ahab",
            "don't",
            "naïve",
            "e\u{301}t",
            "well-worn",
            "кит",
        ] {
            assert!(is_letters(word), "{word}");
        }
        for word in ["", "w4", "'tis", "whale's'", "-", "a.b", "\u{301}"] {
            assert!(!is_letters(word), "{word}");
        }
    }
}
