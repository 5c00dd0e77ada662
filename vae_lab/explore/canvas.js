// A canvas to draw on, to drop or paste a picture on, or to open one: each change is sent as the event `draw`.
const canvas = element.querySelector('canvas'), pen = canvas.getContext('2d');
const [ink, width, clear, file] = ['.ink', '.width', '.clear', '.file'].map(name => element.querySelector(name));
let last = null;

const send = picture => trigger('draw', {picture});
const clean = () => pen.clearRect(0, 0, canvas.width, canvas.height);

const stroke = event => {
  const box = canvas.getBoundingClientRect();
  const x = (event.clientX - box.left) * canvas.width / box.width, y = (event.clientY - box.top) * canvas.height / box.height;
  Object.assign(pen, {strokeStyle: ink.value, lineWidth: width.value, lineCap: 'round', lineJoin: 'round'});
  pen.beginPath();
  pen.moveTo(...(last || [x + 0.1, y]));
  pen.lineTo(x, y);
  pen.stroke();
  last = [x, y];
  send(canvas.toDataURL());
};
canvas.addEventListener('pointerdown', event => { canvas.setPointerCapture(event.pointerId); last = null; stroke(event); });
canvas.addEventListener('pointermove', event => { if (event.buttons) stroke(event); });

const open = picture => {  // the server gets the file, the canvas shows it
  const reader = new FileReader();
  reader.onload = () => {
    send(reader.result);
    const image = new Image();
    image.onload = () => {
      const scale = Math.min(canvas.width / image.width, canvas.height / image.height);
      const size = [image.width * scale, image.height * scale];
      clean();
      pen.drawImage(image, (canvas.width - size[0]) / 2, (canvas.height - size[1]) / 2, ...size);
    };
    image.src = reader.result;
  };
  if (picture) reader.readAsDataURL(picture);
};
clear.addEventListener('click', () => { clean(); send(canvas.toDataURL()); });
file.addEventListener('change', () => open(file.files[0]));
element.addEventListener('dragover', event => event.preventDefault());
element.addEventListener('drop', event => { event.preventDefault(); open(event.dataTransfer.files[0]); });
document.addEventListener('paste', event => { if (canvas.offsetParent) open(event.clipboardData.files[0]); });
