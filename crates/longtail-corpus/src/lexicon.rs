//! Which strings are words: Hunspell dictionaries and word lists.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use input_files::{Format, Input, InputError, read_text};

/// Why a lexicon did not load.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LexiconError {
    /// A file that cannot be read, or is something else than its name says.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Neither a Hunspell dictionary nor a word list.
    #[error("lexicon `{}` is neither a word list (.txt) nor a Hunspell dictionary (.aff and .dic of that name)", path.display())]
    Unknown {
        /// The path.
        path: PathBuf,
    },
    /// A character set that is not supported.
    #[error("Hunspell dictionary `{}` is in {charset}, expected UTF-8 or ISO8859-1", path.display())]
    Charset {
        /// The .aff file.
        path: PathBuf,
        /// What it says.
        charset: String,
    },
    /// A dictionary that cannot be parsed.
    #[error("Hunspell dictionary `{}` cannot be parsed: {what}", path.display())]
    Parse {
        /// The .aff file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A list without words.
    #[error("word list `{}` is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// A set of words: those of any of its sources.
///
/// # Examples
/// ```
/// use longtail_corpus::Lexicon;
///
/// let lexicon = Lexicon::from_words(["whale", "Ahab"]);
/// assert!(lexicon.contains("whale") && lexicon.contains("Whale") && lexicon.contains("Ahab"));
/// assert!(!lexicon.contains("ahab") && !lexicon.contains("wat"));
/// ```
#[derive(Default)]
pub struct Lexicon {
    dictionaries: Vec<spellbook::Dictionary>,
    words: HashSet<String>,
}

impl std::fmt::Debug for Lexicon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lexicon")
            .field("dictionaries", &self.dictionaries.len())
            .field("words", &self.words.len())
            .finish()
    }
}

impl Lexicon {
    /// A list of words.
    pub fn from_words<S: Into<String>>(words: impl IntoIterator<Item = S>) -> Self {
        Self {
            dictionaries: Vec::new(),
            words: words.into_iter().map(Into::into).collect(),
        }
    }

    /// Loads sources: a `.txt` is a word list (one per line, UTF-8, `#` starts a comment line); anything else is the path of a Hunspell
    /// dictionary with or without its `.dic` or `.aff`.
    ///
    /// # Errors
    /// - [`LexiconError`] at the first source that does not load
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Self, LexiconError> {
        let mut lexicon = Self::default();
        for path in paths.iter().map(AsRef::as_ref) {
            let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
            match ending.as_ref().and_then(|ending| ending.to_str()) {
                _ if matches!(Format::of(path), Some((Format::Text, _))) => {
                    lexicon.add_list(path)?
                }
                Some("dic" | "aff") => lexicon.add_dictionary(&path.with_extension(""))?,
                _ => lexicon.add_dictionary(path)?,
            }
        }
        Ok(lexicon)
    }

    fn add_list(&mut self, path: &Path) -> Result<(), LexiconError> {
        let text = read_text(path, &[Format::Text])?;
        let words = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut words = words.map(String::from).peekable();
        if words.peek().is_none() {
            return Err(LexiconError::Empty { path: path.into() });
        }
        self.words.extend(words);
        Ok(())
    }

    fn add_dictionary(&mut self, stem: &Path) -> Result<(), LexiconError> {
        let with = |ending: &str| {
            let mut path = stem.as_os_str().to_owned();
            path.push(ending);
            PathBuf::from(path)
        };
        let (aff_path, dic_path) = (with(".aff"), with(".dic"));
        if !aff_path.exists() && !dic_path.exists() {
            return Err(LexiconError::Unknown { path: stem.into() });
        }
        let (aff, dic) = (
            Input::open_as(&aff_path, Format::Text)?.into_bytes()?,
            Input::open_as(&dic_path, Format::Text)?.into_bytes()?,
        );
        let charset = charset(&aff);
        let decode = |bytes: Vec<u8>| match charset.to_ascii_uppercase().as_str() {
            "UTF-8" | "UTF8" => String::from_utf8(bytes).map_err(|_| LexiconError::Charset {
                path: aff_path.clone(),
                charset: "something else than UTF-8".into(),
            }),
            // Latin-1 bytes are the first 256 code points.
            "ISO8859-1" | "ISO-8859-1" => Ok(bytes.into_iter().map(char::from).collect()),
            _ => Err(LexiconError::Charset {
                path: aff_path.clone(),
                charset: charset.clone(),
            }),
        };
        let dictionary =
            spellbook::Dictionary::new(&decode(aff)?, &decode(dic)?).map_err(|err| {
                LexiconError::Parse {
                    path: aff_path.clone(),
                    what: err.to_string(),
                }
            })?;
        self.dictionaries.push(dictionary);
        Ok(())
    }

    /// Whether a source has the word.
    ///
    /// Upper case where a lower-case word is listed is a spelling of it (`Whale`, `WHALE`), but not the other way (`ahab`).
    pub fn contains(&self, word: &str) -> bool {
        let listed = |word: &str| self.words.contains(word);
        let in_list = || {
            let starts_upper = word.chars().next().is_some_and(char::is_uppercase);
            listed(word)
                || (starts_upper && listed(&word.to_lowercase()))
                || (starts_upper && is_upper(word) && listed(&title(word)))
        };
        (!self.words.is_empty() && in_list())
            || self
                .dictionaries
                .iter()
                .any(|dictionary| dictionary.check(word))
    }
}

fn is_upper(word: &str) -> bool {
    !word.chars().any(char::is_lowercase)
}

fn title(word: &str) -> String {
    let mut chars = word.chars();
    chars
        .next()
        .into_iter()
        .chain(chars.flat_map(char::to_lowercase))
        .collect()
}

/// The character set an .aff file declares; Hunspell's default is Latin-1.
fn charset(aff: &[u8]) -> String {
    let line = aff
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"SET "));
    line.map_or_else(
        || "ISO8859-1".into(),
        |name| String::from_utf8_lossy(name).trim().to_owned(),
    )
}
