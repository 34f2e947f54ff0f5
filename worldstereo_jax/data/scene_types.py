"""What a procedural scene is made of, as one pytree of fixed-size arrays.

Sizes are the same for every scene, so that one compiled program renders all of them. Geometry
stands in the room's frame: metres, y down, the floor at y = 0, the room's middle at x = z = 0.
The world frame is the first camera's frame; `Scene.room_from_world` joins the two.
"""

import typing

import flax.struct

from worldstereo_jax.array_types import Array, Float, Int, UInt32

MAX_BOXES = 26
MAX_SPHERES = 5
MAX_CYLINDERS = 3
TEXTURES_PER_SCENE = 14
PRIMITIVES = 1 + MAX_BOXES + MAX_SPHERES + MAX_CYLINDERS
"""The room itself comes first, then boxes, spheres and cylinders."""


@typing.no_type_check
@flax.struct.dataclass
class Scene:
    """A room with objects. Unused slots have size 0 and are never hit.

    Attributes:
        room_half: [3] half extents of the room, an upright box seen from inside, m.
        box_center, box_half: [MAX_BOXES, 3] m; box_yaw: [MAX_BOXES] rad about the y axis.
        sphere_center: [MAX_SPHERES, 3]; sphere_radius: [MAX_SPHERES] m.
        cylinder_center: [MAX_CYLINDERS, 3]; cylinder_radius, cylinder_half_height:
            [MAX_CYLINDERS] m; the axis is vertical.
        surface_texture: [PRIMITIVES, 6] which texture each face shows; faces are -x, +x, -y,
            +y, -z, +z in the primitive's own axes, round ones use the first only.
        surface_uv: [PRIMITIVES, 6, 3] texels per metre, offset in u, offset in v (texels).
        textures: [TEXTURES_PER_SCENE, TEXTURE_TEXELS] packed colour pyramids.
        light: [3] position of the lamp in the room, m.
        room_from_world: [4, 4] rigid; its translation is where the first camera stands.
        horizontal_fov: [] of all cameras, rad.
    """

    room_half: Float[Array, "3"]
    box_center: Float[Array, "boxes 3"]
    box_half: Float[Array, "boxes 3"]
    box_yaw: Float[Array, "boxes"]
    sphere_center: Float[Array, "spheres 3"]
    sphere_radius: Float[Array, "spheres"]
    cylinder_center: Float[Array, "cylinders 3"]
    cylinder_radius: Float[Array, "cylinders"]
    cylinder_half_height: Float[Array, "cylinders"]
    surface_texture: Int[Array, "primitives 6"]
    surface_uv: Float[Array, "primitives 6 3"]
    textures: UInt32[Array, "textures texels"]
    light: Float[Array, "3"]
    room_from_world: Float[Array, "4 4"]
    horizontal_fov: Float[Array, ""]


@typing.no_type_check
@flax.struct.dataclass
class SceneFrames:
    """Rendered frames with ground truth.

    Attributes:
        image: [f, h, w, 3] in [-1, 1], anti-aliased.
        depth: [f, h, w] camera z at pixel centres, m; every ray ends in the room, so all valid.
        normal: [f, h, w, 3] unit, world frame, facing the camera.
    """

    image: Float[Array, "f h w 3"]
    depth: Float[Array, "f h w"]
    normal: Float[Array, "f h w 3"]
