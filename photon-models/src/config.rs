//! The numbers of a model, as `config.json` gives them.
//!
//! Every field is optional and defaults to those of the model's [`Family`]. [`Config::from_json`] checks what the code
//! relies on (divisibility, limits), so nothing downstream can divide by zero or allocate without
//! bound because of a file.
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::expected_tensors;

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not the JSON that was expected.
    #[error("config.json is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// A number that makes no sense.
    #[error("config.json: {0}")]
    Value(String),
}

/// The generations of Moondream, which differ in the text model, the region heads and the prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Moondream 2: every block is dense.
    Moondream2,
    /// Moondream 3: tau attention, and experts in all but the first blocks.
    Moondream3,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Family::Moondream2 => "Moondream 2",
            Family::Moondream3 => "Moondream 3",
        })
    }
}

impl Family {
    /// The family of a checkpoint with these tensors, by its Hugging Face names.
    pub fn of<'a>(mut tensors: impl Iterator<Item = &'a str>) -> Family {
        match tensors.any(|name| name.contains(".attn.tau.") || name.contains(".mlp.router.")) {
            true => Family::Moondream3,
            false => Family::Moondream2,
        }
    }
}

/// A model's numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The language model.
    pub text: TextConfig,
    /// The vision encoder and projector.
    pub vision: VisionConfig,
    /// The coordinate and size heads.
    pub region: RegionConfig,
    /// Ids and prompts.
    pub tokenizer: TokenConfig,
}

/// The language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Width inside the MLP.
    pub ff_dim: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Positions.
    pub max_context: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// First positions that attend both ways when there is an image: BOS and the image.
    pub prefix_attn: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// First dimensions of a head that are rotated.
    pub rotary_dims: usize,
    /// Experts in place of the MLP of most blocks.
    pub moe: Option<MoeConfig>,
    /// Whether queries and values are scaled by content and position: see [`photon_core::Tau`].
    pub tau_attn: bool,
    /// The GELU in front of tau's matrix.
    pub tau_gelu: TauGelu,
}

/// The experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MoeConfig {
    /// Experts of a block.
    pub num_experts: usize,
    /// The first block that has them.
    pub start_layer: usize,
    /// How many of them a token goes to.
    pub experts_per_token: usize,
    /// Width inside an expert.
    pub expert_inner_dim: usize,
}

impl Default for MoeConfig {
    fn default() -> Self {
        MoeConfig { num_experts: 64, start_layer: 4, experts_per_token: 8, expert_inner_dim: 1024 }
    }
}

/// Either form of GELU: public implementations of Moondream 3 differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TauGelu {
    /// The newer, and the faster.
    #[default]
    Tanh,
    /// The exact one.
    Erf,
}

impl Default for TextConfig {
    fn default() -> Self {
        TextConfig {
            dim: 2048,
            ff_dim: 8192,
            n_layers: 24,
            vocab_size: 51200,
            max_context: 2048,
            n_heads: 32,
            n_kv_heads: 32,
            prefix_attn: 730,
            rope_theta: 1e4,
            rotary_dims: 32,
            moe: None,
            tau_attn: false,
            tau_gelu: TauGelu::Tanh,
        }
    }
}

impl TextConfig {
    /// Elements per head.
    pub fn head_dim(&self) -> usize {
        self.dim / self.n_heads
    }

    /// Columns of k, and of v.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim()
    }

    /// Columns of q, k and v side by side.
    pub fn qkv_dim(&self) -> usize {
        self.dim + 2 * self.kv_dim()
    }

    /// The experts of block `layer`, if it has any.
    pub fn experts(&self, layer: usize) -> Option<&MoeConfig> {
        self.moe.as_ref().filter(|moe| moe.start_layer <= layer)
    }
}

/// The vision encoder and projector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub enc_dim: usize,
    /// Side of a patch in pixels.
    pub enc_patch_size: usize,
    /// Blocks.
    pub enc_n_layers: usize,
    /// Width inside the MLP.
    pub enc_ff_dim: usize,
    /// Heads.
    pub enc_n_heads: usize,
    /// Width of what the projector gives; the text model's.
    pub proj_out_dim: usize,
    /// Side of a crop in pixels.
    pub crop_size: usize,
    /// Color channels; 3.
    pub in_channels: usize,
    /// Most local crops.
    pub max_crops: usize,
    /// Patches at an inner edge of a crop that overlap its neighbor.
    pub overlap_margin: usize,
    /// Width inside the projector.
    pub proj_inner_dim: usize,
}

impl Default for VisionConfig {
    fn default() -> Self {
        VisionConfig {
            enc_dim: 1152,
            enc_patch_size: 14,
            enc_n_layers: 27,
            enc_ff_dim: 4304,
            enc_n_heads: 16,
            proj_out_dim: 2048,
            crop_size: 378,
            in_channels: 3,
            max_crops: 12,
            overlap_margin: 4,
            proj_inner_dim: 8192,
        }
    }
}

impl VisionConfig {
    /// Patches per side of a crop.
    pub fn grid(&self) -> usize {
        self.crop_size / self.enc_patch_size
    }

    /// Patches of a crop, and positions an image takes in the text model.
    pub fn patches(&self) -> usize {
        self.grid().pow(2)
    }

    /// Elements of a patch.
    pub fn patch_dim(&self) -> usize {
        self.in_channels * self.enc_patch_size.pow(2)
    }
}

/// The coordinate and size heads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegionConfig {
    /// Width of the text model.
    pub dim: usize,
    /// Fourier features of a coordinate.
    pub coord_feat_dim: usize,
    /// Bins of a coordinate.
    pub coord_out_dim: usize,
    /// Fourier features of a size.
    pub size_feat_dim: usize,
    /// Bins of width and height together.
    pub size_out_dim: usize,
    /// Width inside the decoders.
    pub inner_dim: usize,
}

impl Default for RegionConfig {
    fn default() -> Self {
        RegionConfig {
            dim: 2048,
            coord_feat_dim: 256,
            coord_out_dim: 1024,
            size_feat_dim: 512,
            size_out_dim: 2048,
            inner_dim: 8192,
        }
    }
}

/// Ids with a meaning, and prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenConfig {
    /// Begins a sequence.
    pub bos_id: u32,
    /// Ends an answer.
    pub eos_id: u32,
    /// Ends reasoning; opens the answer.
    pub answer_id: u32,
    /// Opens reasoning.
    pub thinking_id: u32,
    /// Stands for a coordinate.
    pub coord_id: u32,
    /// Stands for a width and height.
    pub size_id: u32,
    /// Begins a run of points in reasoning.
    pub start_ground_points_id: u32,
    /// Ends it.
    pub end_ground_id: u32,
    /// Prompts.
    pub templates: Templates,
}

impl TokenConfig {
    /// The ids that a skill's state may narrow the next one down to, ascending: where such a step goes on,
    /// nothing else is looked at.
    pub fn marks(&self) -> [u32; 4] {
        let mut marks = [self.eos_id, self.answer_id, self.coord_id, self.size_id];
        marks.sort_unstable();
        marks
    }
}

impl Default for TokenConfig {
    fn default() -> Self {
        TokenConfig {
            bos_id: 0,
            eos_id: 0,
            answer_id: 3,
            thinking_id: 4,
            coord_id: 5,
            size_id: 6,
            start_ground_points_id: 7,
            end_ground_id: 9,
            templates: Templates::default(),
        }
    }
}

/// The prompt of each skill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Templates {
    /// Caption prompts.
    pub caption: CaptionTemplates,
    /// Around a question.
    pub query: Affixes,
    /// Around the name of what to find.
    pub detect: Affixes,
    /// Around the name of what to point at.
    pub point: Affixes,
    /// Around the name of what to outline; none in a model that cannot.
    pub segment: Option<Affixes>,
}

impl Default for Templates {
    fn default() -> Self {
        let affixes = |prefix: &[u32]| Affixes { prefix: prefix.to_vec(), suffix: vec![3] };
        Templates {
            caption: CaptionTemplates::default(),
            query: affixes(&[1, 15381, 2]),
            detect: affixes(&[1, 7235, 476, 2]),
            point: affixes(&[1, 2581, 2]),
            segment: None,
        }
    }
}

/// Caption prompts by length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptionTemplates {
    /// A sentence.
    pub short: Vec<u32>,
    /// A paragraph.
    pub normal: Vec<u32>,
    /// More.
    pub long: Vec<u32>,
}

impl Default for CaptionTemplates {
    fn default() -> Self {
        CaptionTemplates {
            short: vec![1, 32708, 2, 12492, 3],
            normal: vec![1, 32708, 2, 6382, 3],
            long: vec![1, 32708, 2, 4059, 3],
        }
    }
}

/// Ids before and after the user's words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Affixes {
    /// Before.
    pub prefix: Vec<u32>,
    /// After.
    pub suffix: Vec<u32>,
}

/// Puts what is given in the place of what is there, objects key by key.
fn lay_over(whole: &mut Value, given: Value) {
    match (whole, given) {
        (Value::Object(whole), Value::Object(given)) => {
            for (key, given) in given {
                lay_over(whole.entry(key).or_insert(Value::Null), given);
            }
        }
        // What is no object where one belongs is found by whoever reads it, who says what it is.
        (whole, given) => *whole = given,
    }
}

/// No dimension of a model is larger; keeps a bad file from asking for absurd memory.
const MAX_DIM: usize = 1 << 20;
/// No model has more blocks.
const MAX_LAYERS: usize = 1 << 10;
/// No model has more parameters: a hundred times Moondream 3. Sizes in bytes cannot overflow.
const MAX_PARAMETERS: f64 = (1u64 << 40) as f64;

impl Config {
    /// The published model of a family.
    pub fn of(family: Family) -> Self {
        let mut config = Config::default();
        if family == Family::Moondream3 {
            config.text = TextConfig {
                max_context: 32_768,
                rope_theta: 1.5e6,
                moe: Some(MoeConfig::default()),
                tau_attn: true,
                ..config.text
            };
            config.tokenizer.templates.segment =
                Some(Affixes { prefix: vec![1, 17374, 2], suffix: vec![3] });
        }
        config
    }

    /// The family, by the text model.
    pub fn family(&self) -> Family {
        match self.text.tau_attn || self.text.moe.is_some() {
            true => Family::Moondream3,
            false => Family::Moondream2,
        }
    }

    /// Parses and checks `config.json`: `{"config": {"text": ..., ...}}`, or the inner object itself.
    /// What it leaves out is as in the published model of `family`.
    pub fn from_json(json: &[u8], family: Family) -> Result<Self, ConfigError> {
        let mut given: Value = serde_json::from_slice(json)?;
        if let Some(inner) = given.get_mut("config").filter(|inner| !inner.is_null()) {
            given = inner.take();
        }
        if !given.is_object() {
            return Err(ConfigError::Value("it is no JSON object".into()));
        }
        let published = Config::of(family);
        let mut whole = serde_json::to_value(&published)?;
        let segments = given.pointer("/tokenizer/templates/segment").is_some();
        for part in ["text", "vision", "region", "tokenizer"] {
            if let Some(given) = given.get_mut(part).map(Value::take) {
                lay_over(&mut whole[part], given);
            }
        }
        let mut config: Config = serde_json::from_value(whole)?;
        // The published prompt's ids mean nothing in another vocabulary.
        if !segments && config.text.vocab_size != published.text.vocab_size {
            config.tokenizer.templates.segment = None;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let (t, v, r, ids) = (&self.text, &self.vision, &self.region, &self.tokenizer);
        let need = |ok: bool, message: String| ok.then_some(()).ok_or(ConfigError::Value(message));
        let sizes = [
            ("text.dim", t.dim),
            ("text.ff_dim", t.ff_dim),
            ("text.n_layers", t.n_layers),
            ("text.vocab_size", t.vocab_size),
            ("text.max_context", t.max_context),
            ("text.n_heads", t.n_heads),
            ("text.n_kv_heads", t.n_kv_heads),
            ("text.rotary_dims", t.rotary_dims),
            ("vision.enc_dim", v.enc_dim),
            ("vision.enc_patch_size", v.enc_patch_size),
            ("vision.enc_n_layers", v.enc_n_layers),
            ("vision.enc_ff_dim", v.enc_ff_dim),
            ("vision.enc_n_heads", v.enc_n_heads),
            ("vision.proj_inner_dim", v.proj_inner_dim),
            ("vision.crop_size", v.crop_size),
            ("vision.max_crops", v.max_crops),
            ("region.coord_feat_dim", r.coord_feat_dim),
            ("region.coord_out_dim", r.coord_out_dim),
            ("region.size_feat_dim", r.size_feat_dim),
            ("region.size_out_dim", r.size_out_dim),
            ("region.inner_dim", r.inner_dim),
        ];
        let moe = t.moe.as_ref().map(|m| {
            [
                ("text.moe.num_experts", m.num_experts),
                ("text.moe.experts_per_token", m.experts_per_token),
                ("text.moe.expert_inner_dim", m.expert_inner_dim),
            ]
        });
        for (name, value) in sizes.into_iter().chain(moe.into_iter().flatten()) {
            need(
                (1..=MAX_DIM).contains(&value),
                format!("{name} is {value}, not in 1..={MAX_DIM}"),
            )?;
        }
        for (name, layers) in
            [("text.n_layers", t.n_layers), ("vision.enc_n_layers", v.enc_n_layers)]
        {
            need(layers <= MAX_LAYERS, format!("{name} is {layers}, more than {MAX_LAYERS}"))?;
        }
        let divides = [
            ("text.n_heads", t.n_heads, "text.dim", t.dim),
            ("text.n_kv_heads", t.n_kv_heads, "text.n_heads", t.n_heads),
            ("vision.enc_n_heads", v.enc_n_heads, "vision.enc_dim", v.enc_dim),
            ("vision.enc_patch_size", v.enc_patch_size, "vision.crop_size", v.crop_size),
            ("2", 2, "text.rotary_dims", t.rotary_dims),
            ("2", 2, "region.coord_feat_dim", r.coord_feat_dim),
            ("2", 2, "region.size_feat_dim", r.size_feat_dim),
            ("2", 2, "region.size_out_dim", r.size_out_dim),
        ];
        for (a, x, b, y) in divides {
            need(y % x == 0, format!("{a} ({x}) does not divide {b} ({y})"))?;
        }
        let equal = [
            ("vision.proj_out_dim", v.proj_out_dim, "text.dim", t.dim),
            ("region.dim", r.dim, "text.dim", t.dim),
            ("vision.in_channels", v.in_channels, "the channels of a color picture", 3),
            ("text.prefix_attn", t.prefix_attn, "1 + the patches of a crop", 1 + v.patches()),
        ];
        for (a, x, b, y) in equal {
            need(x == y, format!("{a} is {x}, but {b} is {y}"))?;
        }
        need(
            t.rotary_dims <= t.head_dim(),
            format!("text.rotary_dims is {}, a head has {}", t.rotary_dims, t.head_dim()),
        )?;
        if let Some(m) = &t.moe {
            let (top, all) = (m.experts_per_token, m.num_experts);
            need(top <= all, format!("text.moe.experts_per_token is {top} of {all} experts"))?;
        }
        need(
            !t.tau_attn || t.n_kv_heads == t.n_heads,
            format!(
                "text.tau_attn needs as many key heads as heads, not {} of {}",
                t.n_kv_heads, t.n_heads
            ),
        )?;
        need(
            v.overlap_margin < v.grid().div_ceil(2),
            format!("vision.overlap_margin {} leaves no window of {}", v.overlap_margin, v.grid()),
        )?;
        need(
            t.rope_theta.is_finite() && t.rope_theta > 0.0,
            format!("text.rope_theta is {}", t.rope_theta),
        )?;
        let product = |shape: &[usize]| shape.iter().map(|&n| n as f64).product::<f64>();
        let parameters: f64 = expected_tensors(self).iter().map(|(_, s)| product(s)).sum();
        need(
            parameters <= MAX_PARAMETERS,
            format!("it describes {parameters:.1e} parameters, more than {MAX_PARAMETERS:.1e}"),
        )?;
        need(
            t.max_context > t.prefix_attn,
            format!("text.max_context {} has no room after the image", t.max_context),
        )?;
        let c = &ids.templates;
        let prompts = [&c.caption.short, &c.caption.normal, &c.caption.long].into_iter();
        let affixes = [&c.query, &c.detect, &c.point].into_iter().chain(&c.segment);
        let words = prompts.chain(affixes.flat_map(|a| [&a.prefix, &a.suffix])).flatten().copied();
        let controls = [ids.bos_id, ids.eos_id, ids.answer_id, ids.thinking_id, ids.coord_id];
        let more = [ids.size_id, ids.start_ground_points_id, ids.end_ground_id];
        for id in words.chain(controls).chain(more) {
            need(
                (id as usize) < t.vocab_size,
                format!("tokenizer: id {id} is not in the vocabulary"),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_config_is_the_published_model() {
        for family in [Family::Moondream2, Family::Moondream3] {
            let want = Config::of(family);
            assert_eq!(Config::from_json(b"{\"config\": {}}", family).unwrap(), want);
            assert_eq!(Config::from_json(b"{}", family).unwrap(), want);
            assert_eq!(want.family(), family);
        }
    }

    #[test]
    fn what_is_given_stands_beside_the_defaults() {
        let json = br#"{"text": {"rope_theta": 2.0, "moe": {"num_experts": 16}}}"#;
        let text = Config::from_json(json, Family::Moondream3).unwrap().text;
        assert_eq!((text.rope_theta, text.max_context), (2.0, 32_768));
        assert_eq!(text.moe, Some(MoeConfig { num_experts: 16, ..MoeConfig::default() }));
        let point = br#"{"tokenizer": {"templates": {"point": {"prefix": [7]}}}}"#;
        let templates = Config::from_json(point, Family::Moondream3).unwrap().tokenizer.templates;
        assert_eq!((templates.point.prefix, templates.point.suffix), (vec![7], vec![3]));
        assert_eq!(templates.segment.unwrap().prefix, [1, 17374, 2]);
        let dense = br#"{"text": {"moe": null, "tau_attn": false}}"#;
        let config = Config::from_json(dense, Family::Moondream3).unwrap();
        assert_eq!(config.family(), Family::Moondream2);
    }

    #[test]
    fn only_a_model_with_a_prompt_for_it_segments() {
        let segment = |json: &str, family| {
            let config = Config::from_json(json.as_bytes(), family).unwrap();
            config.tokenizer.templates.segment.map(|affixes| affixes.prefix)
        };
        let named = r#"{"tokenizer": {"templates": {"segment": {"prefix": [8], "suffix": []}}}}"#;
        let small = r#"{"text": {"vocab_size": 40000}}"#;
        let without = r#"{"tokenizer": {"templates": {"segment": null}}}"#;
        assert_eq!(segment("{}", Family::Moondream2), None);
        assert_eq!(segment(named, Family::Moondream2), Some(vec![8]));
        assert_eq!(segment("{}", Family::Moondream3), Some(vec![1, 17374, 2]));
        assert_eq!(segment(named, Family::Moondream3), Some(vec![8]));
        assert_eq!(segment(small, Family::Moondream3), None);
        assert_eq!(segment(without, Family::Moondream3), None);
    }

    #[track_caller]
    fn refuses(json: &str, message: &str) {
        let error = Config::from_json(json.as_bytes(), Family::Moondream2).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        refuses("{\"text\": {\"n_heads\": 0}}", "text.n_heads is 0");
        refuses("{\"text\": {\"n_heads\": 3}}", "text.n_heads (3) does not divide text.dim (2048)");
        refuses("{\"text\": {\"dim\": 4096}}", "vision.proj_out_dim is 2048, but text.dim is 4096");
        refuses("{\"text\": {\"vocab_size\": 999999999}}", "not in 1..=");
        refuses("{\"text\": {\"moe\": {\"num_experts\": 4}}}", "experts_per_token is 8 of 4");
        refuses("{\"text\": {\"tau_attn\": true, \"n_kv_heads\": 8}}", "not 8 of 32");
        refuses("{\"text\": {\"n_layers\": 1025}}", "text.n_layers is 1025, more than 1024");
        refuses("{\"text\": {\"rope_theta\": 0}}", "text.rope_theta is 0");
        refuses("{\"text\": {\"rope_theta\": 1e300}}", "text.rope_theta is inf");
        let experts = r#"{"text": {"moe": {"num_experts": 1000000, "expert_inner_dim": 1000000}}}"#;
        refuses(experts, "parameters, more than 1.1e12");
        refuses("{\"vision\": {\"overlap_margin\": 14}}", "leaves no window");
        refuses("{\"vision\": {\"overlap_margin\": 18446744073709551615}}", "leaves no window");
        refuses("{\"tokenizer\": {\"coord_id\": 60000}}", "id 60000 is not in the vocabulary");
        let segment =
            r#"{"tokenizer": {"templates": {"segment": {"prefix": [60000], "suffix": []}}}}"#;
        refuses(segment, "id 60000 is not in the vocabulary");
        refuses("{\"text\": 5}", "not valid");
        refuses("[1]", "no JSON object");
        refuses("not json", "not valid");
    }
}
