//! The model that the inference servers run: handwritten digits, 64 pixels to ten scores, trained by
//! `tools/train_model.py` and run by `tract`.

use super::error::{LabError, LabResult};
use std::sync::Arc;
use tract_onnx::prelude::*;

pub const ONNX: &[u8] = include_bytes!("model/digits.onnx");
pub const GOLDEN: &[u8] = include_bytes!("model/golden.json");
pub const ONNX_KEY: &str = "digits/model.onnx";
pub const GOLDEN_KEY: &str = "digits/golden.json";
pub const FEATURES: usize = 64;

pub struct Model(Arc<TypedRunnableModel>);

impl Model {
    /// # Errors
    /// When the bytes are not a model that fits.
    pub fn load(bytes: &[u8]) -> LabResult<Self> {
        let fail = |e: TractError| LabError::Model(format!("{e:#}"));
        let mut reader = bytes;
        let model = tract_onnx::onnx().model_for_read(&mut reader).map_err(fail)?;
        let model = model.with_input_fact(0, f32::fact([1, FEATURES]).into()).map_err(fail)?;
        Ok(Self(model.into_optimized().and_then(IntoRunnable::into_runnable).map_err(fail)?))
    }

    /// The label and the score of each class.
    /// # Errors
    /// When there are not 64 features, or the model gives something else.
    pub fn predict(&self, features: &[f32]) -> LabResult<(i64, Vec<f32>)> {
        let fail = |e: TractError| LabError::Model(format!("{e:#}"));
        if features.len() != FEATURES {
            return Err(LabError::Model(format!("it takes {FEATURES} features, and was given {}", features.len())));
        }
        let input = Tensor::from_shape(&[1, FEATURES], features).map_err(fail)?;
        let outputs = self.0.run(tvec!(input.into_tvalue())).map_err(fail)?;
        let (Some(label), Some(scores)) = (outputs.first(), outputs.get(1)) else {
            return Err(LabError::Model("it has fewer than two outputs".to_owned()));
        };
        let label = label.cast_to::<i64>().map_err(fail)?;
        let label = label.to_plain_array_view::<i64>().map_err(fail)?.iter().next().copied().unwrap_or(-1);
        let scores = scores.to_plain_array_view::<f32>().map_err(fail)?.iter().copied().collect();
        Ok((label, scores))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_inputs_give_the_golden_outputs() {
        let model = Model::load(ONNX).unwrap();
        let golden: serde_json::Value = serde_json::from_slice(GOLDEN).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 10);
        for case in cases {
            let numbers = |key: &str| -> Vec<f32> { case[key].as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect() };
            let (label, scores) = model.predict(&numbers("features")).unwrap();
            assert_eq!(Some(label), case["label"].as_i64());
            for (ours, theirs) in scores.iter().zip(numbers("scores")) {
                assert!((ours - theirs).abs() < 1e-5, "{ours} is not {theirs}");
            }
        }
        assert!(model.predict(&[0.0; 3]).is_err());
        assert!(Model::load(b"not a model").is_err());
    }
}
