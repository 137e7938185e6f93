//! Contexts of words: the text of a sentence up to where the word occurs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Range,
    path::PathBuf,
    sync::Arc,
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use unicode_segmentation::UnicodeSegmentation;

use crate::{CorpusError, Document, SentenceRule, batch::Batches, fnv::Fnv128};

/// Why contexts could not be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// The corpus cannot be read.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// No words to look for.
    #[error("no words to find contexts for")]
    NoWords,
    /// A setting that cannot be.
    #[error("`{name}` is 0, expected at least 1")]
    Zero {
        /// Its name.
        name: &'static str,
    },
    /// The corpus changed between the two passes over it.
    #[error("document {index} is not what it was when the corpus was first read")]
    Changed {
        /// Its row in the corpus.
        index: usize,
    },
}

/// Which contexts of a word are kept, if it has more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Choice {
    /// The most frequent, ties by first occurrence.
    TopK,
    /// A random sample of the distinct contexts, the same for the same seed and corpus.
    Random {
        /// The seed.
        seed: u64,
    },
}

/// What a word and a context are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ContextReading {
    /// Words end at Unicode word boundaries; the context is the text as it stands, with the space before the word.
    #[default]
    Corrected,
    /// As the Python package of Liu et al. (2025): sentences split at white space (`whale,` is not `whale`), the context is the words before,
    /// joined by single spaces.
    Liu2025,
}

impl ContextReading {
    /// What stands between a context and its word, beyond what the context ends with.
    pub fn separator(self) -> &'static str {
        match self {
            Self::Corrected => "",
            Self::Liu2025 => " ",
        }
    }
}

/// How contexts are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContextOptions {
    /// Fewest words before the word in its sentence.
    pub window: usize,
    /// Most contexts kept of a word.
    pub contexts: usize,
    /// Which ones.
    pub choice: Choice,
    /// Where sentences end.
    pub sentences: SentenceRule,
    /// What a word and a context are.
    pub reading: ContextReading,
}

impl ContextOptions {
    /// With another [`window`](Self::window).
    #[must_use]
    pub fn with_window(self, window: usize) -> Self {
        Self { window, ..self }
    }

    /// With another [`contexts`](Self::contexts).
    #[must_use]
    pub fn with_contexts(self, contexts: usize) -> Self {
        Self { contexts, ..self }
    }

    /// With another [`choice`](Self::choice).
    #[must_use]
    pub fn with_choice(self, choice: Choice) -> Self {
        Self { choice, ..self }
    }

    /// With another [`sentences`](Self::sentences).
    #[must_use]
    pub fn with_sentences(self, sentences: SentenceRule) -> Self {
        Self { sentences, ..self }
    }

    /// With another [`reading`](Self::reading).
    #[must_use]
    pub fn with_reading(self, reading: ContextReading) -> Self {
        Self { reading, ..self }
    }
}

impl Default for ContextOptions {
    /// Up to 20 contexts of 5 words or more, drawn at random.
    fn default() -> Self {
        Self {
            window: 5,
            contexts: 20,
            choice: Choice::Random { seed: 0 },
            sentences: SentenceRule::default(),
            reading: ContextReading::default(),
        }
    }
}

/// A context of a word, where it first occurs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Context {
    /// The text from the start of the sentence up to the word.
    pub text: String,
    /// What stood between that and the word and is not in `text`: nothing, as `text` is byte-exact, but a space where words were joined
    /// ([`ContextReading::Liu2025`]).
    pub separator: &'static str,
    /// Row of the document in the corpus.
    pub document: usize,
    /// The file it is from.
    pub file: Arc<PathBuf>,
    /// The document's row in that file.
    pub row: usize,
    /// Byte offset in the document where the context starts.
    pub start: usize,
    /// Byte offsets in the document of the word.
    pub word: Range<usize>,
    /// How often the word follows this context.
    pub count: u64,
    /// That, relative to how often the context occurs before any word.
    pub frequency: f64,
}

impl Context {
    /// `log10(frequency * 1e6)`
    pub fn log_freq_per_million(&self) -> f64 {
        (self.frequency * 1e6).log10()
    }
}

/// A word with its contexts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WordContexts {
    /// The word.
    pub word: String,
    /// Its frequency on the Zipf scale, for a caller that knows it to fill in; none as found.
    pub zipf: Option<f64>,
    /// Occurrences with enough words before them.
    pub occurrences: u64,
    /// The contexts kept, in the order of choice; none if the word does not occur so.
    pub contexts: Vec<Context>,
}

/// The contexts of all words asked for, in their order.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FoundContexts {
    /// One entry per distinct word, those without a context too.
    pub words: Vec<WordContexts>,
    /// Words that were asked for more than once.
    pub repeated: usize,
    /// Documents searched.
    pub documents: usize,
    /// Sentences searched.
    pub sentences: u64,
    /// Words that follow at least one other in their sentence.
    pub windows: u64,
}

/// Finds contexts in one pass over the words of the corpus, and reads it once more for the texts and frequencies of those that are kept.
///
/// Each word of the corpus is looked up in a table of the words asked for, so that the cost hardly grows with their number. `documents` is
/// called twice and must give the same corpus. Words are matched exactly as spelled. With [`Choice::Random`] memory is bounded by the words
/// times the contexts kept; [`Choice::TopK`] holds a few dozen bytes for each distinct context of a word.
///
/// # Errors
/// - [`ContextError::Corpus`] if the corpus cannot be read, [`ContextError::Changed`] if it changes meanwhile
/// - [`ContextError::NoWords`], [`ContextError::Zero`] if nothing can be found
pub fn find_contexts<I>(
    documents: impl Fn() -> I,
    words: &[String],
    options: &ContextOptions,
) -> Result<FoundContexts, ContextError>
where
    I: Iterator<Item = Result<Document, CorpusError>> + Send,
{
    if options.contexts == 0 {
        return Err(ContextError::Zero { name: "contexts" });
    }
    if options.window == 0 {
        return Err(ContextError::Zero { name: "window" });
    }
    let targets = Targets::new(words, options.reading)?;
    let search = Search {
        targets: &targets,
        options,
    };

    let fresh = || Gathered::new(targets.words.len());
    let gathered = Batches::new(documents())
        .par_bridge()
        .try_fold(fresh, |mut gathered, batch| {
            for document in batch? {
                search.gather(&document, &mut gathered);
            }
            Ok::<_, CorpusError>(gathered)
        })
        .try_reduce(fresh, |a, b| Ok(a.merge(b, options)))?;
    let chosen: Vec<Vec<(u128, Seen)>> = gathered
        .per_word
        .into_iter()
        .map(|word| word.choose(options))
        .collect();

    let totals = search.totals(documents, &chosen)?;
    let mut found = FoundContexts {
        words: Vec::with_capacity(chosen.len()),
        repeated: words.len() - targets.words.len(),
        documents: gathered.documents,
        sentences: gathered.sentences,
        windows: gathered.windows,
    };
    for ((word, chosen), occurrences) in targets.words.iter().zip(chosen).zip(gathered.occurrences)
    {
        let mut contexts = Vec::with_capacity(chosen.len());
        for (key, seen) in chosen {
            let at = seen.first;
            let changed = ContextError::Changed { index: at.document };
            let origin = totals.origins.get(&(key, at.document));
            let (Some(times), Some(origin)) = (totals.times.get(&key), origin) else {
                return Err(changed);
            };
            contexts.push(Context {
                text: origin.text.clone(),
                separator: options.reading.separator(),
                document: at.document,
                file: origin.file.clone(),
                row: origin.row,
                start: at.start,
                word: at.word.0..at.word.1,
                count: seen.count,
                frequency: seen.count as f64 / *times as f64,
            });
        }
        found.words.push(WordContexts {
            word: word.clone(),
            zipf: None,
            occurrences,
            contexts,
        });
    }
    Ok(found)
}

/// The words asked for, by the first Unicode word in them.
struct Targets {
    words: Vec<String>,
    by_first: HashMap<String, Vec<u32>>,
}

impl Targets {
    fn new(words: &[String], reading: ContextReading) -> Result<Self, ContextError> {
        if words.is_empty() {
            return Err(ContextError::NoWords);
        }
        let mut seen = HashSet::new();
        let words: Vec<String> = words
            .iter()
            .filter(|word| seen.insert(word.as_str()))
            .cloned()
            .collect();
        let mut by_first: HashMap<String, Vec<u32>> = HashMap::new();
        for (id, word) in (0u32..).zip(&words) {
            let first = match reading {
                ContextReading::Corrected => word
                    .unicode_words()
                    .next()
                    .filter(|first| word.starts_with(first)),
                ContextReading::Liu2025 => Some(word.as_str()),
            };
            if let Some(first) = first {
                by_first.entry(first.into()).or_default().push(id);
            }
        }
        Ok(Self { words, by_first })
    }
}

/// Where an occurrence is. Ordered as the corpus is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    document: usize,
    start: usize,
    word: (usize, usize),
}

/// What is known of one context of one word.
#[derive(Debug, Clone, Copy)]
struct Seen {
    count: u64,
    first: Place,
}

/// The contexts of one word, by the hash of their text.
#[derive(Debug, Default)]
struct PerWord {
    seen: HashMap<u128, Seen>,
    /// For a random choice, the contexts by their random number; only the lowest are kept. One that fell out cannot come back, as the bar
    /// only sinks: the counts of those that stay are complete.
    lottery: BTreeSet<(u64, u128)>,
}

impl PerWord {
    fn add(&mut self, key: u128, seen: Seen, options: &ContextOptions) {
        if let Some(known) = self.seen.get_mut(&key) {
            known.count += seen.count;
            known.first = known.first.min(seen.first);
            return;
        }
        if let Choice::Random { seed } = options.choice {
            let ticket = (Fnv128::from_value(key).seeded(seed), key);
            if self.lottery.len() == options.contexts {
                if self.lottery.last().is_some_and(|last| ticket > *last) {
                    return;
                }
                if let Some((_, out)) = self.lottery.pop_last() {
                    self.seen.remove(&out);
                }
            }
            self.lottery.insert(ticket);
        }
        self.seen.insert(key, seen);
    }

    fn choose(self, options: &ContextOptions) -> Vec<(u128, Seen)> {
        match options.choice {
            Choice::Random { .. } => self
                .lottery
                .iter()
                .filter_map(|(_, key)| self.seen.get(key).map(|seen| (*key, *seen)))
                .collect(),
            Choice::TopK => {
                let mut all: Vec<(u128, Seen)> = self.seen.into_iter().collect();
                all.sort_unstable_by(|(_, a), (_, b)| {
                    b.count.cmp(&a.count).then(a.first.cmp(&b.first))
                });
                all.truncate(options.contexts);
                all
            }
        }
    }
}

/// What the first pass finds.
struct Gathered {
    per_word: Vec<PerWord>,
    occurrences: Vec<u64>,
    documents: usize,
    sentences: u64,
    windows: u64,
}

impl Gathered {
    fn new(words: usize) -> Self {
        Self {
            per_word: (0..words).map(|_| PerWord::default()).collect(),
            occurrences: vec![0; words],
            documents: 0,
            sentences: 0,
            windows: 0,
        }
    }

    fn merge(mut self, other: Self, options: &ContextOptions) -> Self {
        self.documents += other.documents;
        self.sentences += other.sentences;
        self.windows += other.windows;
        self.occurrences
            .iter_mut()
            .zip(other.occurrences)
            .for_each(|(a, b)| *a += b);
        for (mine, theirs) in self.per_word.iter_mut().zip(other.per_word) {
            for (key, seen) in theirs.seen {
                mine.add(key, seen, options);
            }
        }
        self
    }
}

/// What the second pass finds of the contexts that were kept.
#[derive(Debug, Default)]
struct Totals {
    /// How often each occurs before any word.
    times: HashMap<u128, u64>,
    /// Where it comes from, by the document: words that share a context may have met it first in different ones.
    origins: HashMap<(u128, usize), Origin>,
}

#[derive(Debug)]
struct Origin {
    file: Arc<PathBuf>,
    row: usize,
    text: String,
}

impl Totals {
    fn merge(mut self, other: Self) -> Self {
        for (key, times) in other.times {
            *self.times.entry(key).or_default() += times;
        }
        self.origins.extend(other.origins);
        self
    }
}

struct Search<'a> {
    targets: &'a Targets,
    options: &'a ContextOptions,
}

/// A word that follows others in its sentence.
struct Window<'a> {
    text: &'a str,
    start: usize,
    /// Words before it.
    before: usize,
    word: Range<usize>,
    /// Hash of the context.
    hash: Fnv128,
    /// Ends of this word and of those after it.
    ends: &'a [(usize, usize)],
}

impl Search<'_> {
    /// Calls `visit` for every word that follows another in its sentence; gives the number of sentences.
    fn windows(&self, text: &str, mut visit: impl FnMut(Window<'_>)) -> u64 {
        let mut words: Vec<(usize, usize)> = Vec::new();
        let mut sentences = 0;
        for sentence in self.options.sentences.ranges(text) {
            let body = &text[sentence.clone()];
            words.clear();
            match self.options.reading {
                ContextReading::Corrected => words.extend(
                    body.unicode_word_indices()
                        .map(|(at, word)| (sentence.start + at, sentence.start + at + word.len())),
                ),
                ContextReading::Liu2025 => words.extend(body.split_whitespace().map(|word| {
                    let at = word.as_ptr() as usize - text.as_ptr() as usize;
                    (at, at + word.len())
                })),
            }
            sentences += 1;
            // White space at the start of a sentence belongs to no context.
            let start = sentence.start + (body.len() - body.trim_start().len());
            let mut hash = Fnv128::new();
            let mut hashed = start;
            for (before, &(from, to)) in words.iter().enumerate() {
                match self.options.reading {
                    ContextReading::Corrected => {
                        hash.update(&text.as_bytes()[hashed..from]);
                        hashed = from;
                    }
                    ContextReading::Liu2025 if before > 0 => {
                        let (from, to) = words[before - 1];
                        if before > 1 {
                            hash.update(b" ");
                        }
                        hash.update(&text.as_bytes()[from..to]);
                    }
                    ContextReading::Liu2025 => {}
                }
                if before > 0 {
                    visit(Window {
                        text,
                        start,
                        before,
                        word: from..to,
                        hash,
                        ends: &words[before..],
                    });
                }
            }
        }
        sentences
    }

    fn gather(&self, document: &Document, gathered: &mut Gathered) {
        gathered.documents += 1;
        let Gathered {
            per_word,
            occurrences,
            windows,
            ..
        } = gathered;
        let sentences = self.windows(&document.text, |window| {
            *windows += 1;
            if window.before < self.options.window {
                return;
            }
            let Some(candidates) = self.targets.by_first.get(&window.text[window.word.clone()])
            else {
                return;
            };
            for &id in candidates {
                let target = &self.targets.words[id as usize];
                let end = window.word.start + target.len();
                let whole = end == window.word.end
                    || (window.text[window.word.start..].starts_with(target.as_str())
                        && window
                            .ends
                            .iter()
                            .map(|&(_, to)| to)
                            .take_while(|&to| to <= end)
                            .any(|to| to == end));
                if whole {
                    occurrences[id as usize] += 1;
                    let first = Place {
                        document: document.index,
                        start: window.start,
                        word: (window.word.start, end),
                    };
                    per_word[id as usize].add(
                        window.hash.value(),
                        Seen { count: 1, first },
                        self.options,
                    );
                }
            }
        });
        gathered.sentences += sentences;
    }

    /// The second pass: counts each kept context before any word, and takes down its text.
    fn totals<I>(
        &self,
        documents: impl Fn() -> I,
        chosen: &[Vec<(u128, Seen)>],
    ) -> Result<Totals, CorpusError>
    where
        I: Iterator<Item = Result<Document, CorpusError>> + Send,
    {
        let kept: HashSet<u128> = chosen.iter().flatten().map(|(key, _)| *key).collect();
        let mut wanted: BTreeMap<usize, Vec<(u128, Place)>> = BTreeMap::new();
        for (key, seen) in chosen.iter().flatten() {
            wanted
                .entry(seen.first.document)
                .or_default()
                .push((*key, seen.first));
        }
        Batches::new(documents())
            .par_bridge()
            .try_fold(Totals::default, |mut totals, batch| {
                for document in batch? {
                    self.windows(&document.text, |window| {
                        if kept.contains(&window.hash.value()) {
                            *totals.times.entry(window.hash.value()).or_default() += 1;
                        }
                    });
                    for (key, place) in wanted.get(&document.index).into_iter().flatten() {
                        let Some(slice) = document.text.get(place.start..place.word.0) else {
                            continue;
                        };
                        let text = match self.options.reading {
                            ContextReading::Corrected => slice.to_owned(),
                            ContextReading::Liu2025 => {
                                slice.split_whitespace().collect::<Vec<_>>().join(" ")
                            }
                        };
                        if Fnv128::of(text.as_bytes()).value() == *key {
                            totals.origins.insert(
                                (*key, document.index),
                                Origin {
                                    file: document.file.clone(),
                                    row: document.row,
                                    text,
                                },
                            );
                        }
                    }
                }
                Ok::<_, CorpusError>(totals)
            })
            .try_reduce(Totals::default, |a, b| Ok(a.merge(b)))
    }
}

/// The Python package's shape: word to list of `{context, word_in_context_stats: {count, frequency, log_freq_per_million}}`; for byte-exact
/// contexts also a `separator`, what to put between context and word (nothing; without one, readers of this shape put a space), the row of its
/// `document` and the `zipf` value of the word, where it is known.
impl Serialize for FoundContexts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a> {
            context: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            separator: Option<&'static str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            document: Option<usize>,
            #[serde(skip_serializing_if = "Option::is_none")]
            zipf: Option<f64>,
            word_in_context_stats: Stats,
        }
        #[derive(Serialize)]
        struct Stats {
            count: u64,
            frequency: f64,
            log_freq_per_million: f64,
        }
        let mut map = serializer.serialize_map(Some(self.words.len()))?;
        for word in &self.words {
            let entries = word.contexts.iter().map(|context| Entry {
                context: &context.text,
                separator: context.separator.is_empty().then_some(""),
                document: context.separator.is_empty().then_some(context.document),
                zipf: word.zipf.filter(|_| context.separator.is_empty()),
                word_in_context_stats: Stats {
                    count: context.count,
                    frequency: context.frequency,
                    log_freq_per_million: context.log_freq_per_million(),
                },
            });
            map.serialize_entry(&word.word, &entries.collect::<Vec<_>>())?;
        }
        map.end()
    }
}
