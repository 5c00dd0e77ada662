"""From tensors to pictures: bare grids of images, and annotated figures."""
