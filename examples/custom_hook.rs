//! Writes a hook of one's own: finds the most active neurons of the last MLP layer, then runs the
//! model again with the first of them set to zero.
//!
//! ```sh
//! cargo run -p neox-core --example custom_hook
//! ```

use std::error::Error;
use std::path::PathBuf;

use neox_core::{Hooks, LoadOptions, Model, Site, Text};
use tch::{Kind, TchError, Tensor};

/// Keeps the activations of one layer and can silence a neuron there.
struct Neurons {
    layer: usize,
    silence: Option<i64>,
    seen: Option<Tensor>,
}

impl Hooks for Neurons {
    fn wants(&self, site: Site) -> bool {
        site == Site::MlpPost(self.layer)
    }

    /// `value`: `[batch, pos, d_mlp]`.
    fn at(&mut self, _: Site, value: Tensor) -> Result<Tensor, TchError> {
        let next = match self.silence {
            None => value.shallow_clone(),
            Some(neuron) => {
                let changed = value.f_detach_copy()?;
                let _ = changed.f_select(-1, neuron)?.f_zero_()?;
                changed
            }
        };
        self.seen = Some(value);
        Ok(next)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let data = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/data/tiny-neox"
    ));
    let model = Model::load(&data.join("step4000"), &LoadOptions::default())?;
    let text = Text::from_file(&data.join("tokenizer.json"))?;
    let mut ids = vec![0]; // BOS
    ids.extend(text.encode("The great whale rose slowly out of the sea, and")?);
    let tokens = Tensor::f_from_slice(&ids)?.f_view([1, -1])?;

    let mut hook = Neurons {
        layer: model.config().num_hidden_layers - 1,
        silence: None,
        seen: None,
    };
    let clean = model.forward(&tokens, None, &mut hook)?;
    let mean = hook
        .seen
        .take()
        .ok_or("the hook was not called")?
        .f_mean_dim(vec![0, 1], false, Kind::Float)?; // [d_mlp]
    let (activations, neurons) = mean.f_topk(5, -1, true, true)?;
    let activations: Vec<f32> = activations.try_into()?;
    let neurons: Vec<i64> = neurons.try_into()?;
    println!("most active neurons of layer {}:", hook.layer);
    for (neuron, activation) in neurons.iter().zip(&activations) {
        println!("  {neuron:4}  mean activation {activation:.3}");
    }

    hook.silence = neurons.first().copied();
    let ablated = model.forward(&tokens, None, &mut hook)?;
    let next = |logits: &Tensor| -> Result<String, Box<dyn Error>> {
        let last = logits.f_select(1, -1)?.f_argmax(-1, false)?;
        Ok(text.decode(&[last.f_int64_value(&[0])?])?)
    };
    let change = ablated.f_sub(&clean)?.f_abs()?.f_max()?;
    println!(
        "without neuron {}: logits change by up to {:.3}; next token {:?}, before {:?}",
        neurons[0],
        change.f_double_value(&[])?,
        next(&ablated)?,
        next(&clean)?
    );
    Ok(())
}
