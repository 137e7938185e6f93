//! How one neuron of a language model is named, in all crates, tables and configurations.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A neuron of an MLP layer, in text `layer.neuron`, both counted from 0.
///
/// Two whole numbers, never a decimal number: `5.10` and `5.1` are two neurons.
///
/// # Examples
/// ```
/// use neuron_id::NeuronId;
/// let neuron: NeuronId = "5.10".parse()?;
/// assert_eq!(neuron, NeuronId { layer: 5, neuron: 10 });
/// assert_ne!(neuron, "5.1".parse()?);
/// assert_eq!(neuron.to_string(), "5.10");
/// # Ok::<(), neuron_id::NotANeuron>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeuronId {
    /// Index of the layer.
    pub layer: usize,
    /// Index in the layer's MLP.
    pub neuron: usize,
}

/// Text that names no neuron.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a neuron: expected `layer.neuron`, two whole numbers as text, such as \"5.10\""
)]
pub struct NotANeuron {
    /// What was found.
    pub text: String,
}

impl fmt::Display for NeuronId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.layer, self.neuron)
    }
}

impl FromStr for NeuronId {
    type Err = NotANeuron;

    fn from_str(text: &str) -> Result<Self, NotANeuron> {
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            // No model has more, and columns of tables hold no more.
            let number: i32 = part.parse().ok().filter(|_| digits)?;
            usize::try_from(number).ok()
        };
        let parts = text
            .split_once('.')
            .and_then(|(layer, neuron)| Some((number(layer)?, number(neuron)?)));
        let (layer, neuron) = parts.ok_or_else(|| NotANeuron { text: text.into() })?;
        Ok(Self { layer, neuron })
    }
}

impl Serialize for NeuronId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NeuronId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact() {
        for text in ["0.0", "5.1", "5.10", "23.2017"] {
            assert_eq!(
                text.parse::<NeuronId>().map(|id| id.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in [
            "",
            "5",
            "5.",
            ".1",
            "a.b",
            "5.1.2",
            "+5.1",
            "-1.2",
            "5.-1",
            "5.1e1",
            " 5.1",
            "5.99999999999",
        ] {
            let refused = Err(NotANeuron { text: text.into() });
            assert_eq!(text.parse::<NeuronId>(), refused);
        }
    }
}
