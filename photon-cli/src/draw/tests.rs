//! Pixel checks: what is painted where, and that nothing is painted outside.

use super::*;

fn gray(width: u32, height: u32) -> Vec<u8> {
    vec![128; width as usize * height as usize * 3]
}

fn paint(width: u32, height: u32, marks: Vec<Mark>) -> Vec<u8> {
    let mut pixels = gray(width, height);
    draw(&mut Canvas::new(width, height, &mut pixels), &Overlay { marks });
    pixels
}

fn mark(shape: Shape, label: &str, color: usize) -> Mark {
    Mark { shape, label: label.into(), color }
}

fn boxed(x_min: f32, y_min: f32, x_max: f32, y_max: f32) -> Shape {
    Shape::Box { x_min, y_min, x_max, y_max }
}

fn at(pixels: &[u8], width: u32, x: usize, y: usize) -> [u8; 3] {
    let at = (y * width as usize + x) * 3;
    [pixels[at], pixels[at + 1], pixels[at + 2]]
}

#[test]
fn a_box_is_a_line_with_a_dark_halo_and_an_untouched_inside() {
    let pixels = paint(520, 520, vec![mark(boxed(0.25, 0.25, 0.75, 0.75), "", 0)]);
    // 2 pixels thick about 130 and 390, then 1 of halo, darker than the picture.
    for side in [130, 390] {
        for (x, y) in [(side, 260), (260, side), (side - 1, 260), (260, side - 1)] {
            assert_eq!(at(&pixels, 520, x, y), PALETTE[0], "({x}, {y})");
        }
        for (x, y) in [(side - 2, 260), (side + 1, 260), (260, side + 1)] {
            assert!(at(&pixels, 520, x, y).iter().all(|v| *v < 90), "({x}, {y})");
        }
    }
    for (x, y) in [(260, 260), (120, 260), (400, 400), (135, 135), (5, 5)] {
        assert_eq!(at(&pixels, 520, x, y), [128; 3], "({x}, {y})");
    }
}

#[test]
fn lines_are_anti_aliased_and_grow_with_the_picture() {
    let painted = |width: u32, shape: Shape| {
        let pixels = paint(width, width, vec![mark(shape, "", 1)]);
        (0..width as usize)
            .filter(|x| at(&pixels, width, *x, width as usize / 2) == PALETTE[1])
            .count()
    };
    assert_eq!(painted(520, boxed(0.5, 0.2, 0.9, 0.8)), 4);
    assert_eq!(painted(2080, boxed(0.5, 0.2, 0.9, 0.8)), 16);
    let triangle = Shape::Outline(vec![vec![(0.1, 0.1), (0.9, 0.2), (0.5, 0.9)]]);
    let pixels = paint(200, 200, vec![mark(triangle, "", 2)]);
    let mut shades: Vec<u8> = pixels.iter().skip(2).step_by(3).copied().collect();
    shades.sort_unstable();
    shades.dedup();
    assert!(shades.len() > 20, "{} shades", shades.len());
}

#[test]
fn a_point_is_a_dot_in_a_white_ring() {
    let pixels = paint(1040, 1040, vec![mark(Shape::Point { x: 0.5, y: 0.5 }, "", 3)]);
    assert_eq!(at(&pixels, 1040, 520, 520), PALETTE[3]);
    assert_eq!(at(&pixels, 1040, 526, 520), PALETTE[3]);
    assert_eq!(at(&pixels, 1040, 529, 519), [255; 3]);
    assert!(at(&pixels, 1040, 531, 519)[0] < 100);
    assert_eq!(at(&pixels, 1040, 540, 520), [128; 3]);
}

#[test]
fn an_outline_is_tinted_but_for_its_holes() {
    let square = |a: f32, b: f32| vec![(a, a), (b, a), (b, b), (a, b)];
    let shape = Shape::Outline(vec![square(0.1, 0.9), square(0.4, 0.6)]);
    let pixels = paint(300, 300, vec![mark(shape, "", 1)]);
    assert_eq!(at(&pixels, 300, 150, 150), [128; 3]);
    let tinted = at(&pixels, 300, 75, 75);
    assert!(tinted[0] > 150 && tinted[1] < 128, "{tinted:?}");
    assert_eq!(at(&pixels, 300, 10, 10), [128; 3]);
}

#[test]
fn a_label_is_painted_inside_the_picture() {
    // In each corner, and over the whole picture: some of the plate's color must be visible, with
    // dark text in it, and the plate spans less than the picture.
    for (shape, name) in [
        (boxed(0.0, 0.0, 0.1, 0.1), "top left"),
        (boxed(0.9, 0.0, 1.0, 0.1), "top right"),
        (boxed(0.9, 0.9, 1.0, 1.0), "bottom right"),
        (boxed(0.0, 0.0, 1.0, 1.0), "all"),
        (Shape::Point { x: 1.0, y: 0.5 }, "right edge"),
    ] {
        let plain = paint(300, 200, vec![mark(shape.clone(), "", 2)]);
        let labeled = paint(300, 200, vec![mark(shape, "traffic light", 2)]);
        let changed: Vec<usize> =
            (0..300 * 200).filter(|i| plain[i * 3..][..3] != labeled[i * 3..][..3]).collect();
        let yellow = changed.iter().filter(|i| labeled[*i * 3] > 230 && labeled[*i * 3 + 2] < 60);
        let dark = changed.iter().filter(|i| labeled[*i * 3] < 100);
        let (yellow, dark) = (yellow.count(), dark.count());
        assert!(yellow > 600 && dark > 60, "{name}: {yellow} of the plate, {dark} of text");
        // 13 letters at 13 pixels are about 100 wide: all of it has to be there.
        let (left, right) =
            (changed.iter().map(|i| i % 300).min(), changed.iter().map(|i| i % 300).max());
        assert!(right.unwrap() - left.unwrap() > 90, "{name}");
    }
}

#[test]
fn odd_marks_and_tiny_pictures_do_no_harm() {
    let marks = || {
        vec![
            mark(boxed(f32::NAN, 0.0, 1.0, 1.0), "nan", 0),
            mark(boxed(0.9, 0.9, 0.1, 0.1), "reversed", 1),
            mark(boxed(-5.0, -5.0, 5.0, 5.0), "far", 2),
            mark(boxed(0.5, 0.5, 0.5, 0.5), "", usize::MAX),
            mark(Shape::Point { x: f32::INFINITY, y: 0.0 }, "inf", 3),
            mark(Shape::Point { x: 9.0, y: -9.0 }, "\u{1f600} \u{0} \u{4e2d}\u{6587}", 4),
            mark(Shape::Outline(vec![]), "none", 5),
            mark(
                Shape::Outline(vec![vec![], vec![(0.5, 0.5)], vec![(0.0, 0.0), (1.0, 1.0)]]),
                "x",
                6,
            ),
        ]
    };
    for (width, height) in [(1, 1), (2, 300), (300, 2), (5, 5), (30_000, 1), (40, 40), (640, 480)] {
        assert_eq!(paint(width, height, marks()).len(), gray(width, height).len());
    }
    // What cannot be placed is left out entirely.
    assert_eq!(paint(50, 50, marks()[..1].to_vec()), gray(50, 50));
    assert_eq!(paint(0, 7, marks()), gray(0, 7));
}

#[test]
fn a_saved_picture_reads_back() {
    let folder = std::env::temp_dir().join(format!("photon-draw-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let pixels = paint(64, 48, vec![mark(boxed(0.2, 0.2, 0.8, 0.8), "cup", 1)]);
    for (name, tolerance) in [("a.png", 0), ("a.webp", 0), ("a.JPG", 60), ("a.jpeg", 60)] {
        let path = folder.join(name);
        save(&path, 64, 48, &pixels).unwrap();
        let read = image::load_from_memory(&std::fs::read(&path).unwrap()).unwrap().to_rgb8();
        assert_eq!(read.dimensions(), (64, 48));
        let worst = read.iter().zip(&pixels).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(tolerance), "{name}: {worst:?}");
    }
    let error = |name: &str| save(&folder.join(name), 64, 48, &pixels).unwrap_err().to_string();
    assert!(error("a.tga").ends_with("a.tga`: end its name in .png, .jpg or .webp"));
    assert!(error("noextension").contains("cannot tell the format"));
    assert!(error("missing/a.png").starts_with("cannot write `"));
    let wide = gray(20_000, 1);
    let error = save(&folder.join("wide.webp"), 20_000, 1, &wide).unwrap_err().to_string();
    assert!(error.starts_with("cannot write a 20000x1 picture as WebP: "), "{error}");
    std::fs::remove_dir_all(folder).unwrap();
}
