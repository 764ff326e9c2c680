//! The embedded demo models against the PyTorch models they were exported from.
use photon::{
    Answer, BoundingBox, Budget, CaptionLength, DType, Image, Model, Photon, Request, Sampling,
    Skill,
};
use serde_json::Value;

fn skill(record: &Value) -> Skill {
    let text = |key: &str| record[key].as_str().unwrap().to_owned();
    match record["skill"].as_str().unwrap() {
        "caption" => Skill::Caption { length: CaptionLength::Short },
        "query" => {
            Skill::Query { question: text("question"), reasoning: false, spatial_refs: vec![] }
        }
        "detect" => Skill::Detect { object: text("object") },
        "point" => Skill::Point { object: text("object"), spatial_refs: vec![] },
        "segment" => Skill::Segment { object: text("object"), spatial_refs: vec![] },
        other => panic!("skill {other}"),
    }
}

/// Centers and sizes as the record has them, of boxes that do not touch the picture's edge.
fn boxes(answer: &Answer) -> Vec<Vec<f64>> {
    let measures = |o: &BoundingBox| {
        let [x0, y0, x1, y1] = [o.x_min, o.y_min, o.x_max, o.y_max].map(f64::from);
        vec![(x0 + x1) / 2.0, (y0 + y1) / 2.0, x1 - x0, y1 - y0]
    };
    match answer {
        Answer::Detect { objects } => objects.iter().map(measures).collect(),
        Answer::Segment { bbox, .. } => bbox.iter().map(measures).collect(),
        Answer::Point { points } => {
            points.iter().map(|p| vec![f64::from(p.x), f64::from(p.y)]).collect()
        }
        answer => panic!("no places in {answer:?}"),
    }
}

#[test]
fn answers_are_those_of_the_exported_models() {
    for (name, model) in Model::BUILT_IN {
        check(name, model);
    }
}

#[track_caller]
fn check(name: &str, model: Model) {
    let folder = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    let json = std::fs::read(format!("{folder}/expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&json).unwrap();
    // The record was made in f32 from the bf16 weights.
    let photon = Photon::builder().model(model).dtype(DType::F32).build().unwrap();
    let (mut same, mut all) = (0, 0);
    for picture in expected["pictures"].as_array().unwrap() {
        let path = format!("{folder}/{}", picture["image"].as_str().unwrap());
        let image = Image::open(path.as_ref()).unwrap();
        for record in picture["answers"].as_array().unwrap() {
            let request = Request {
                sampling: Sampling::GREEDY,
                budget: Budget::default(),
                ..Request::new(skill(record), Some(image.clone()))
            };
            let response = photon.run(&request, &mut |_| {}).unwrap();
            let tokens = record["tokens"].as_array().unwrap();
            let mut tokens: Vec<u32> = tokens.iter().map(|t| t.as_u64().unwrap() as u32).collect();
            assert_eq!(tokens.pop(), Some(0), "recorded answers end with the end id");
            all += 1;
            let places = record.get("boxes").or(record.get("points"));
            let near = places.is_none_or(|places| near(&boxes(&response.answer), places));
            if let Answer::Segment { path, parse_error, .. } = &response.answer
                && response.tokens == tokens
            {
                assert_eq!((path.as_str(), parse_error), (record["path"].as_str().unwrap(), &None));
            }
            same += u32::from(response.tokens == tokens && near);
        }
    }
    // Pillow's resize and ours differ by up to two levels of 255, which may tip a close decision.
    assert!(same + 1 >= all, "{name}: only {same} of {all} answers are the same");
}

fn near(got: &[Vec<f64>], want: &Value) -> bool {
    let want = want.as_array().unwrap();
    // A bin is 1/1024; a few bins apart is the same place.
    let close = |g: &f64, w: &Value| (g - w.as_f64().unwrap()).abs() < 0.02;
    got.len() == want.len()
        && got
            .iter()
            .zip(want)
            .all(|(g, w)| g.iter().zip(w.as_array().unwrap()).all(|(g, w)| close(g, w)))
}
