//! Selecting neurons from ablation effects, and saying how sure the selection is.
//!
//! Rows of an ablation table go into a [`Tally`]; everything else works on its sums, so that a million rows per checkpoint cost no
//! memory. This crate knows no file, no model and no plot; changes are `ablated - clean`, in nats.
//!
//! ```
//! use neuron_select::{Criteria, Effect, Heuristic, NeuronId, Ranking, Row, RowFilter, Stratum, Tally};
//!
//! let mut tally = Tally::default();
//! for (neuron, loss_change) in [(1, 0.01), (10, 0.3), (2, -0.2)] {
//!     tally.add(&Row {
//!         neuron: NeuronId { layer: 5, neuron },
//!         sequence: 0,
//!         stratum: Stratum::LongTail,
//!         loss_change,
//!         frozen_loss_change: 0.1 * loss_change,
//!         frozen_ln_loss_change: None,
//!         frozen_all_loss_change: None,
//!         kl_change: 0.0,
//!         activation: 1.0,
//!         activation_change: None,
//!         clean_loss: 5.0,
//!     })?;
//! }
//! let criteria = Criteria { heuristic: Heuristic::Prob, effect: Effect::Boost, by_mediation: false, effect_floor: 1e-6 };
//! let ranking = Ranking::new(tally.grouped(RowFilter::LongTail)?.effects(), &criteria);
//! assert_eq!(ranking.top_ids(Some(1)), ["5.10".parse()?]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod coactivation;
mod compare;
mod controls;
mod cross_fit;
mod curve;
mod effects;
mod error;
mod laws;
mod many;
mod paired;
mod rows;
mod selection;
mod stability;

pub use coactivation::Coactivation;
pub use compare::{Comparison, Difference};
pub use controls::{
    Balance, Candidate, ControlKind, ControlOptions, ControlSet, Controls, MatchOn,
    MatchedControls, Pool, Push, TraitBalance, alike, balance, draw_controls, draw_matched,
    exchange_p, rank_p,
};
pub use cross_fit::{CrossFit, Fold, cross_fit};
pub use curve::{Curve, CurveIntervals, PiecewiseFit, Shape, bootstrap_curve};
pub use effects::{Grouped, Measure, NeuronEffects, Row, RowSums, SumColumn, Tally, Weights};
pub use error::SelectError;
pub use laws::{GOODNESS_LEVEL, Law, LawFit, Laws, VUONG_LEVEL, Verdict, Vuong};
pub use many::{max_t, q_values};
pub use neuron_id::NeuronId;
pub use paired::{Paired, paired};
pub use rows::{RowFilter, Stratum};
pub use selection::{Criteria, Effect, Heuristic, Ranked, Ranking, Standing};
pub use stability::{RankInterval, bootstrap_ranks, chance_jaccard, jaccard, rank_biased_overlap};
