//! Reading a tokenizer, how many tokens it has, and how many rows a vocabulary may have for them.

use std::path::Path;

use file_kind::FileKind;
use tokenizers::Tokenizer;

/// Token ids of a tokenizer: the highest, added ones included, plus one.
#[must_use]
pub fn n_tokens(tokenizer: &Tokenizer) -> usize {
    tokenizer
        .get_vocab(true)
        .into_values()
        .max()
        .map_or(0, |id| id as usize + 1)
}

/// Reads a Hugging Face `tokenizer.json`.
///
/// # Errors
/// - what the tokenizers library says, or what the file really is
pub fn read_tokenizer(path: &Path) -> Result<Tokenizer, tokenizers::Error> {
    Tokenizer::from_file(path).map_err(|error| match FileKind::of_file(path) {
        Ok(Some(kind)) => format!("the file is {kind}").into(),
        _ => error,
    })
}

/// How a tokenizer's size goes with the rows of a model's vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// As many rows as tokens, or as much padding as published models have.
    Usual,
    /// More padding than that; perhaps the tokenizer of another model.
    Wide,
    /// More tokens than rows, or so few that it is another model's tokenizer.
    No,
}

/// Whether a vocabulary of `d_vocab` rows can be that of a tokenizer with `n_tokens` tokens.
///
/// Published models have up to 5 % of their rows as padding, in most cases to a multiple of 64, 128 or 512; small ones up to some hundred
/// rows. Up to 10 % or 128 rows are usual here. What has at most 4,096 rows of padding and a token for at least one row in four may be a
/// small model's; everything else is not.
///
/// # Examples
/// ```
/// use model_conventions::{Fit, fit};
///
/// assert_eq!(fit(50_277, 50_688), Fit::Usual); // Pythia
/// assert_eq!(fit(151_665, 152_064), Fit::Usual); // Qwen 2.5
/// assert_eq!(fit(2_000, 4_096), Fit::Wide);
/// assert_eq!(fit(4_096, 50_304), Fit::No);
/// assert_eq!(fit(50_304, 50_257), Fit::No);
/// ```
#[must_use]
pub fn fit(n_tokens: usize, d_vocab: usize) -> Fit {
    let Some(padding) = d_vocab.checked_sub(n_tokens) else {
        return Fit::No;
    };
    if padding <= (d_vocab / 10).max(128) {
        Fit::Usual
    } else if padding <= 4096 && n_tokens >= d_vocab / 4 {
        Fit::Wide
    } else {
        Fit::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_models_fit_and_mixed_ones_do_not() {
        for (model, tokens, rows) in [
            ("pythia-70m", 50_277, 50_304),
            ("pythia-1.4b", 50_277, 50_304),
            ("pythia-6.9b", 50_277, 50_432),
            ("pythia-12b", 50_277, 50_688),
            ("gpt-neox-20b without added tokens", 50_254, 50_432),
            ("gpt2", 50_257, 50_257),
            ("gpt2 padded", 50_257, 50_304),
            ("opt-125m", 50_265, 50_272),
            ("codegen", 50_295, 51_200),
            ("phi-2", 50_295, 51_200),
            ("olmo-1b", 50_280, 50_304),
            ("olmo-2", 100_278, 100_352),
            ("llama-2", 32_000, 32_000),
            ("llama-3", 128_256, 128_256),
            ("mistral v0.3", 32_768, 32_768),
            ("qwen2.5-0.5b", 151_665, 151_936),
            ("qwen2.5-7b, base tokens alone", 151_643, 152_064),
            ("deepseek-llm", 100_015, 102_400),
            ("bloom", 250_680, 250_880),
            ("t5", 32_100, 32_128),
            ("byt5", 259, 384),
            ("mamba", 50_277, 50_280),
            ("smollm2", 49_152, 49_152),
        ] {
            assert_eq!(fit(tokens, rows), Fit::Usual, "{model}");
        }
        for (tokens, rows) in [
            (4_079, 50_304),
            (50_257, 128_256),
            (32_000, 50_304),
            (50_277, 4_096),
            (0, 4_096),
            (500, 4_096),
            (4_097, 4_096),
        ] {
            assert_eq!(fit(tokens, rows), Fit::No, "{tokens} of {rows}");
        }
    }
}
