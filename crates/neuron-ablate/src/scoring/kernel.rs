//! The sums of word scoring on the CPU: the fused kernel of the crate `vocabulary-sums`, for each row and intervention one pass over the
//! vocabulary, in which no logit is written.

use std::{borrow::Cow, collections::BTreeMap, ops::Range};

use rayon::prelude::*;
use tch::{Device, TchError, Tensor};
use vocabulary_sums::{Base, Direction, Kernel, Pairs, RowVectors, Sums, Vector, VocabLayout};

use crate::{
    AblateError,
    closed_form::Unembedding,
    readout::{Readout, see},
    row_logits::RowLogits,
    vectors::{Vectors, dot, on_host},
    word_request::WordVocabulary,
};

use super::values::RowValues;

/// Rows and changes of one call. Over a tile of the kernel their sums fit the second-level cache; the vectors of a change, which are read from
/// memory, serve all the rows.
const ROWS_PER_CALL: usize = 16;
const CHANGES_PER_CALL: usize = 4;
/// Bands of the layout.
const BEGINS: usize = 0;
const CONTINUES: usize = 1;

/// What sums up a vocabulary.
#[derive(Debug)]
pub(super) struct WordSums {
    unembedding: Unembedding,
    vocabulary: Vocabulary,
}

/// The vocabulary in the kernel's order.
#[derive(Debug)]
struct Vocabulary {
    kernel: Kernel,
    layout: VocabLayout,
    /// Place of each token id in the layout.
    place: Vec<usize>,
    eos: usize,
}

/// What neurons of the last layer write.
#[derive(Debug, Default)]
pub(super) struct Neurons {
    /// The place of each neuron in the others.
    at: BTreeMap<usize, usize>,
    /// Output weights as the norm sees them, `[neuron][d_model]`.
    centred: Vec<f64>,
    /// Images in the vocabulary of the first ones, those of sets that gain from them.
    images: Option<Vectors>,
}

/// What an intervention adds to the activations of neurons: `[row][neuron]`.
#[derive(Debug)]
pub(super) struct Changed {
    pub(super) neurons: Vec<usize>,
    /// Whether they have no images: a set as wide as the residual stream gains nothing from them.
    pub(super) wide: bool,
    pub(super) change: Vec<f64>,
}

/// A change of the residual stream of some rows.
struct Moved {
    /// Vectors with their factors, `[row]`.
    terms: Vec<Vec<(usize, f64)>>,
    /// Or the image of the change of each row.
    own: Option<Vectors>,
    /// `[row]`
    bases: Vec<Base>,
}

impl WordSums {
    pub(super) fn new(readout: Readout, words: &WordVocabulary) -> Result<Self, AblateError> {
        // Nothing is asked about frequencies: all are alike.
        let log_q = vec![0.0; words.begins.len()];
        let classes = [&words.begins, &words.continues]
            .map(|class| -> Vec<bool> { class.iter().map(|&of| of != 0.0).collect() });
        let layout = VocabLayout::new(&log_q, &classes.each_ref().map(Vec::as_slice));
        let mut place = vec![0; log_q.len()];
        for (at, &id) in layout.order().iter().enumerate() {
            place[id as usize] = at;
        }
        Ok(Self {
            unembedding: Unembedding::new(readout, layout.order(), Device::Cpu)?,
            vocabulary: Vocabulary {
                kernel: Kernel::for_sums(&layout, &log_q),
                eos: place[words.eos as usize],
                place,
                layout,
            },
        })
    }

    pub(super) fn readout(&self) -> &Readout {
        self.unembedding.readout()
    }

    /// Takes neurons with their output weights, `[neuron, d_model]`; the first `with_images` are of sets that are not wide.
    pub(super) fn neurons(
        &self,
        neurons: &[usize],
        w_out: &Tensor,
        with_images: usize,
    ) -> Result<Neurons, TchError> {
        let mut centred = on_host(w_out)?;
        let d_model = centred.len() / neurons.len().max(1);
        let images = match with_images {
            0 => None,
            some => Some(
                self.unembedding
                    .project_rows(centred[..some * d_model].to_vec())?
                    .logits,
            ),
        };
        let centres = self.unembedding.readout().centres();
        centred
            .chunks_mut(d_model.max(1))
            .for_each(|w| see(centres, w));
        Ok(Neurons {
            at: neurons.iter().copied().zip(0..).collect(),
            centred,
            images,
        })
    }

    /// What some rows of the residual stream, `[row, d_model]`, say of the targets, `(row, token)` sorted by row, and of the boundaries
    /// where these are wanted: as they are, and under each change. With them as they are comes the entropy.
    pub(super) fn read(
        &self,
        resid: &Tensor,
        changes: &[Changed],
        neurons: &Neurons,
        targets: &[(usize, i64)],
        boundaries: bool,
    ) -> Result<(RowValues, Vec<RowValues>), TchError> {
        let rows = self.unembedding.project_rows(on_host(resid)?)?;
        let (x_c, scale) = (on_host(&rows.centred)?, self.unembedding.scale());
        let logits = RowLogits::new(rows.logits, &rows.norm2, scale, self.unembedding.b())?;
        let moved = changes
            .iter()
            .map(|change| self.moved(change, neurons, &x_c, &rows.norm2))
            .collect::<Result<Vec<_>, _>>()?;
        let vocabulary = &self.vocabulary;
        let vectors: Vec<Vector<'_>> = match &neurons.images {
            None => Vec::new(),
            Some(images) => {
                let each = images.host()?.chunks(vocabulary.place.len());
                each.map(|u| vocabulary.kernel.vector(u)).collect()
            }
        };
        let block = Block {
            vocabulary,
            l: logits.l.host()?,
            g: logits.g.host()?,
            moved: moved.iter().map(Moved::on_host).collect::<Result<_, _>>()?,
            vectors,
            targets,
            boundaries,
        };
        let n_rows = rows.norm2.len();
        let parts = (0..n_rows.div_ceil(ROWS_PER_CALL))
            .into_par_iter()
            .map(|i| i * ROWS_PER_CALL..((i + 1) * ROWS_PER_CALL).min(n_rows))
            .map(|at| block.read(at))
            .collect::<Vec<_>>();
        let mut clean = RowValues::default();
        let mut changed = vec![RowValues::default(); changes.len()];
        for (of_clean, of_changed) in parts {
            clean.extend(of_clean);
            for (all, part) in changed.iter_mut().zip(of_changed) {
                all.extend(part);
            }
        }
        Ok((clean, changed))
    }

    /// How a change moves the residual stream of rows, whose centred form and its squared norm are given.
    fn moved(
        &self,
        changed: &Changed,
        neurons: &Neurons,
        x_c: &[f64],
        norm2: &[f64],
    ) -> Result<Moved, TchError> {
        let (scale, d_model) = (self.unembedding.scale(), x_c.len() / norm2.len().max(1));
        let places: Vec<usize> = changed.neurons.iter().map(|n| neurons.at[n]).collect();
        let (mut terms, mut bases, mut deltas) = (Vec::new(), Vec::new(), Vec::new());
        let of_rows = changed.change.chunks(places.len().max(1));
        for ((change, x_c), &x2) in of_rows.zip(x_c.chunks(d_model)).zip(norm2) {
            let mut delta = vec![0.0; d_model];
            for (&place, &change) in places.iter().zip(change) {
                let w_c = &neurons.centred[place * d_model..(place + 1) * d_model];
                delta
                    .iter_mut()
                    .zip(w_c)
                    .for_each(|(d, w)| *d += change * w);
            }
            let moved2 = x2 + 2.0 * dot(&delta, x_c) + dot(&delta, &delta);
            // Rounding must not make a squared norm negative.
            let moved = scale.at(moved2.max(0.0));
            bases.push(Base {
                a: 1.0 / moved - 1.0 / scale.at(x2),
                c: 1.0 / moved,
            });
            match changed.wide {
                false => terms.push(places.iter().copied().zip(change.iter().copied()).collect()),
                true => deltas.extend(delta),
            }
        }
        let own = match changed.wide {
            false => None,
            true => Some(self.unembedding.project_rows(deltas)?.logits),
        };
        Ok(Moved { terms, own, bases })
    }
}

/// The same, to be shared by threads.
struct MovedRows<'m> {
    terms: &'m [Vec<(usize, f64)>],
    own: Option<&'m [f32]>,
    bases: &'m [Base],
}

impl Moved {
    fn on_host(&self) -> Result<MovedRows<'_>, TchError> {
        Ok(MovedRows {
            terms: &self.terms,
            own: self.own.as_ref().map(Vectors::host).transpose()?,
            bases: &self.bases,
        })
    }
}

/// Rows of one forward with their changes.
struct Block<'b> {
    vocabulary: &'b Vocabulary,
    /// `[row][d_vocab]`
    l: &'b [f32],
    g: &'b [f32],
    moved: Vec<MovedRows<'b>>,
    vectors: Vec<Vector<'b>>,
    targets: &'b [(usize, i64)],
    boundaries: bool,
}

impl Block<'_> {
    /// Some of the rows: as they are, and under each change.
    fn read(&self, at: Range<usize>) -> (RowValues, Vec<RowValues>) {
        let Vocabulary {
            kernel,
            place,
            layout,
            ..
        } = self.vocabulary;
        let (d_vocab, cells) = (place.len(), layout.cells().len());
        let rows: Vec<RowVectors<'_>> = at
            .clone()
            .map(|row| {
                let of_row = row * d_vocab..(row + 1) * d_vocab;
                kernel.row(&self.l[of_row.clone()], &self.g[of_row])
            })
            .collect();
        let mut clean = RowValues::default();
        for (number, row) in at.clone().enumerate() {
            let sums = kernel.clean(&rows[number]);
            let all = Sums::over(sums.iter());
            clean.entropies.push(all.lse() - all.s1 / all.s0);
            self.add(&mut clean, row, &sums, |at| {
                self.l[row * d_vocab + at].into()
            });
        }
        let mut changed = vec![RowValues::default(); self.moved.len()];
        for first in (0..self.moved.len()).step_by(CHANGES_PER_CALL) {
            let these = first..(first + CHANGES_PER_CALL).min(self.moved.len());
            let mut vectors = Cow::Borrowed(&self.vectors);
            let (mut pairs, mut bases) = (Vec::new(), Vec::new());
            for (number, row) in at.clone().enumerate() {
                for moved in &self.moved[these.clone()] {
                    let direction = match moved.own {
                        None => Direction::Sum(&moved.terms[row]),
                        Some(own) => {
                            let own = &own[row * d_vocab..(row + 1) * d_vocab];
                            vectors.to_mut().push(kernel.vector(own));
                            Direction::Vector(vectors.len() - 1)
                        }
                    };
                    pairs.push((number, direction));
                    bases.push(moved.bases[row]);
                }
            }
            let sums = kernel.sums(
                &[],
                &Pairs {
                    rows: &rows,
                    vectors: &vectors,
                    pairs: &pairs,
                    bases: &bases,
                    tilts: &[],
                },
            );
            for ((i, of_cells), (pair, base)) in
                sums.chunks(cells).enumerate().zip(pairs.iter().zip(&bases))
            {
                let (row, change) = (at.start + i / these.len(), these.start + i % these.len());
                let logit = |at: usize| {
                    let in_row = row * d_vocab + at;
                    let (l, g) = (f64::from(self.l[in_row]), f64::from(self.g[in_row]));
                    l + base.a * g + base.c * pair.1.at(&vectors, at)
                };
                self.add(&mut changed[change], row, of_cells, logit);
            }
        }
        (clean, changed)
    }

    /// Adds a row by its sums, `[cell]`, and its logits by their place.
    fn add(&self, values: &mut RowValues, row: usize, sums: &[Sums], logit: impl Fn(usize) -> f64) {
        let total = Sums::over(sums.iter()).lse();
        let from = self.targets.partition_point(|(r, _)| *r < row);
        let of_row = self.targets[from..].iter().take_while(|(r, _)| *r == row);
        let place = |token: i64| self.vocabulary.place[token as usize];
        values
            .ln_probs
            .extend(of_row.map(|&(_, token)| logit(place(token)) - total));
        if self.boundaries {
            let mass = |band: usize| {
                let cells = sums.iter().zip(self.vocabulary.layout.cells());
                let of_band = cells.filter(|(_, cell)| cell.in_band(band));
                Sums::over(of_band.map(|(sums, _)| sums)).lse() - total
            };
            let eos = logit(self.vocabulary.eos) - total;
            values.boundaries.push([mass(BEGINS), mass(CONTINUES), eos]);
        }
    }
}
