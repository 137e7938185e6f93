//! Records what a model computes at two sites, and prints the most active neurons of the last MLP layer.
//!
//! `cargo run -p neox-core --example record_activations`

use std::{error::Error, path::Path};

use neox_core::tch::{Kind, Tensor};
use neox_core::{LoadOptions, Model, Recorder, Site, Text};

fn main() -> Result<(), Box<dyn Error>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/tiny-neox");
    let model = Model::load(&data.join("step4000"), &LoadOptions::default())?;
    let text = Text::from_file(&data.join("tokenizer.json"))?;
    let bos = model.config().bos_token_id.ok_or("no BOS in the config")?;
    let words = text.encode("The great whale rose slowly out of the sea")?;
    let tokens = Tensor::f_from_slice(&[vec![bos], words].concat())?.f_view([1, -1])?;

    let last = model.config().num_hidden_layers - 1;
    let (neurons, residual) = (Site::MlpPost(last), Site::ResidPost(last));
    let mut recorder = Recorder::new([neurons, residual]);
    let _logits = model.forward(&tokens, None, &mut recorder)?;

    let activations = recorder.take(neurons).ok_or("it was not asked for")?; // [1, pos, d_mlp]
    let mean = activations.f_mean_dim(vec![0, 1], false, Kind::Float)?;
    let (highest, which) = mean.f_topk(5, -1, true, true)?;
    let (highest, which) = (Vec::<f32>::try_from(highest)?, Vec::<i64>::try_from(which)?);
    for (neuron, activation) in which.iter().zip(highest) {
        println!("neuron {last}.{neuron}: mean activation {activation:.3}");
    }
    let residual = recorder.take(residual).ok_or("it was not asked for")?;
    println!(
        "residual stream after the last block: {:?}",
        residual.size()
    );
    Ok(())
}
